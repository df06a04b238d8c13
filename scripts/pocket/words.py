"""Word lists and made-up words for the pocket texts. Everything random comes from the caller's generator."""

FIRST_NAMES = """Ada Adam Agnes Ahmed Aisha Alan Albert Alex Alice Amara Amy Ana Andrea Andrew Anita Anna Anton Aria
Arthur Astrid Ben Bella Boris Bruno Carl Carla Carlos Carmen Cecil Chen Chloe Clara Colin Cora Dana Daniel Daria David
Diana Diego Dora Edgar Elena Eli Elias Ella Elsa Emil Emma Eric Erika Esther Eva Farah Felix Fiona Frank Frida Gabriel
George Gina Grace Greta Gustav Hana Hannah Harold Hassan Heidi Helen Henry Hugo Ida Ines Ingrid Irene Iris Isaac Ivan
Jack Jakob James Jana Jasper Jean Jenny Joel Johan John Jonas Jorge Joseph Julia Kai Karen Karim Kate Kenji Kira Klaus
Lara Laura Lea Lena Leo Lily Linda Lisa Louis Lucas Lucy Luis Magda Marco Maria Mark Marta Martin Mary Maya Mei Mia
Mila Milo Mina Mona Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Paula Pedro Peter Petra Pia Priya Rachel
Ravi Rita Robert Rosa Ruth Sam Samir Sara Simon Sofia Sven Tara Theo Tim Tina Tom Uma Vera Victor Walter Wanda Yuki
Yusuf Zara Zoe""".split()

LAST_NAMES = """Abbott Adler Ahlberg Baker Barnes Bauer Becker Bell Berg Bishop Blake Bloom Brandt Brook Brown Burke
Carter Castro Clark Cole Costa Cruz Dahl Davis Diaz Dixon Drake Duarte Eaton Ellis Engel Evans Fischer Flores Ford
Foster Fox Frost Fuchs Garcia Gibson Grant Gray Green Gupta Haas Hale Hansen Hart Hayes Hill Holm Hughes Ito Ivanov
Jansen Jones Kaya Keller Kelly Khan Kim King Klein Koch Kumar Lane Lang Larsen Lee Lind Lopez Lund Marsh Mason Mayer
Meyer Mills Moore Moreau Morris Mueller Nash Nilsen Nolan Novak Olsen Ortiz Owens Page Park Patel Perry Petrov Pope
Price Quinn Ramos Reed Reyes Rhodes Rice Rossi Russo Santos Sato Schmidt Shah Silva Singh Smith Snow Sousa Stein
Stone Swift Tanaka Turner Vega Vogel Wagner Walsh Ward Weber Wells West White Wolf Wong Wood Yang Young Zimmer""".split()

CITIES = """Aachen Accra Amman Ankara Antwerp Athens Austin Baku Basel Bergen Berlin Bern Bilbao Bogota Bonn Boston
Bremen Brno Bruges Cairo Calgary Cardiff Chicago Cologne Cork Cusco Dakar Dallas Delhi Denver Dover Dresden Dublin
Durban Exeter Fargo Geneva Ghent Graz Hanoi Havana Helsinki Hull Istanbul Jakarta Kazan Kiel Kobe Krakow Kyoto Lagos
Leeds Leipzig Leon Lima Linz Lisbon London Luanda Lyon Madrid Malaga Malmo Manila Miami Milan Minsk Monaco Munich
Nairobi Nantes Naples Nice Odense Oslo Osaka Ottawa Oxford Paris Perth Pisa Porto Prague Quito Rabat Reims Reno Riga
Rome Salem Seattle Seoul Sofia Split Tampa Tartu Tokyo Toledo Toronto Trento Tunis Turin Turku Utrecht Valencia Vienna
Vilnius Warsaw Winnipeg York Zagreb Zurich""".split()

# Every item takes a plain "s" in the plural.
ITEMS = """apple bag ball banana basket bed bell belt bike blanket book boot bottle bowl bucket button cable
cake camera candle cap carpet chair clock coat comb cookie cup curtain desk doll door drill drum egg fan flag flute
fork frame glove guitar hammer hat helmet jacket jar kettle key kite ladder lamp lemon lock map mask
melon mirror mug nail needle notebook oven paddle pan pen pencil phone piano pillow pipe plate pot printer pump puzzle
radio ring robot rope ruler saddle sail saw scarf screen shirt shoe shovel sofa spoon stamp stool stove suitcase
table tent ticket tile towel toy tray truck trumpet umbrella vase violin wagon wallet wheel whistle window""".split()

ADJECTIVES = """big black blue bright brown cheap clean cold cotton dark dry empty green grey heavy large light long
metal narrow new old orange paper pink plain plastic purple red round sharp short silver small soft square steel
strong tall thick thin tiny warm white wide wooden wool yellow""".split()

COLOURS = "black blue brown green grey orange pink purple red silver white yellow".split()
ANIMALS = """bear bird camel cat cow crab crow deer dog donkey duck eagle fish fox frog goat goose hen horse lion
lizard monkey mouse otter owl parrot pig pony rabbit sheep snake swan tiger turtle whale wolf""".split()
JOBS = """actor artist baker barber builder butcher carpenter chef clerk cook dancer dentist doctor driver farmer
fisher gardener judge lawyer librarian manager mason miner nurse painter pilot plumber poet potter printer sailor
singer soldier tailor teacher waiter weaver writer""".split()
TOPICS = """art budget cooking energy farming fashion food history housing law maths money music painting poetry
politics safety science security sport tax trade traffic travel water weather""".split()
PLACES = "bridge church forest garden hill house kitchen lake market park river school station street tower".split()
ACTIONS = "plays reads rests runs sings sits sleeps stands swims talks waits walks works".split()
SHOPS = "bakery library market museum office school shop station store theatre".split()
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

FILLERS = """about above after again air all always and any arm around away back before begin below best better
between body both bread call care carry change child city close cloud come corner country cover cross cut day deep
different dinner down draw dream drink each ear early earth east easy eat end enough evening ever every eye face
fall family far fast father feel field find fine fire first floor flower fly follow foot free friend from full game
give glad gold good grass great ground grow hair half hand happy hard head hear heart help here high hold home hope
hour hundred ice idea inside island job jump keep kind know land last late laugh lead leaf learn leave left leg
letter life line listen little live lose love low lunch make many mark meet middle milk minute moon more morning most
mother mountain mouth move much name near never next night noise north nose often only open other outside over own
page pair part pass past people person picture piece place plan plant play point poor power pull push question quick
quiet rain rich right road rock roof room root rose run safe sand sea season seed sell send seven shape ship show
side sign simple sister sky sleep slow smile snow some song soon sound south space spring star start stay step still
storm story strange sugar summer sun sure sweet swim talk taste then thing think time today together top town train
tree true turn under until use very village voice wait walk wall want watch wave way week west wet wild win wind
winter word work world write year""".split()

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

ONSETS = "b bl br c ch cl d dr f fl g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sn st t th tr v w y z".split()
VOWELS = "a e i o u ai ea ee ie oo ou".split()
CODAS = ["", "", "", "", "b", "ck", "d", "g", "k", "l", "ll", "m", "n", "nd", "ng", "p", "r", "rk", "rt", "s", "st", "t", "x"]


def number_in_words(number):
    """English words of 0 to 99."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def made_up(rng):
    """A pronounceable word of one to three syllables: what cannot be memorised must be copied."""
    syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


def word(rng):
    """Any lower-case word: usually a known one."""
    if rng.random() < 0.25:
        return made_up(rng)
    return rng.choice(rng.choice((FILLERS, FILLERS, ITEMS, ADJECTIVES, ANIMALS, JOBS, PLACES)))


def words(rng, least, most):
    """Distinct words, as a list."""
    wanted, found = rng.randint(least, most), []
    while len(found) < wanted:
        candidate = word(rng)
        if candidate not in found:
            found.append(candidate)
    return found


def first_name(rng):
    return made_up(rng).capitalize() if rng.random() < 0.2 else rng.choice(FIRST_NAMES)


def full_name(rng):
    if rng.random() < 0.25:
        return first_name(rng)
    last = made_up(rng).capitalize() if rng.random() < 0.3 else rng.choice(LAST_NAMES)
    return f"{first_name(rng)} {last}"


def city(rng):
    return made_up(rng).capitalize() if rng.random() < 0.2 else rng.choice(CITIES)


def item(rng):
    """One thing, with or without an adjective."""
    thing = rng.choice(ITEMS)
    return f"{rng.choice(ADJECTIVES)} {thing}" if rng.random() < 0.5 else thing


def date(rng):
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(1950, 2049)
    form = rng.randrange(4)
    if form == 0:
        return f"{day} {MONTHS[month]}"
    if form == 1:
        return f"{year}-{month + 1:02}-{day:02}"
    return f"{day} {MONTHS[month]} {year}"


def clock_time(rng):
    return f"{rng.randint(0, 23)}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45)):02}"


def count(rng):
    """Two to twelve mostly, up to ninety-nine; never one, so that every item is in the plural."""
    return rng.randint(2, 12) if rng.random() < 0.6 else rng.randint(2, 99)
