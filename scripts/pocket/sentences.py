"""Sentence families: each call gives one sentence and the fields that can be read off it."""

import re

from words import (
    ACTIONS, ADJECTIVES, ANIMALS, COLOURS, ITEMS, JOBS, PLACES, SHOPS, TOPICS, WEEKDAYS,
    city, clock_time, count, date, first_name, full_name, item, number_in_words,
)

# The family of the quickstart data set: an order with name, count, item, city and date.
ORDERS = (
    "{name} bought {count} {item} in {city} on {date}.",
    "{name} ordered {count} {item} in {city} on {date}.",
    "On {date}, {name} picked up {count} {item} in {city}.",
    "In {city}, {name} sold {count} {item} on {date}.",
    "On {date} we sent {count} {item} to {name} in {city}.",
    "{name} from {city} asked for {count} {item} on {date}.",
    "{count} {item} were delivered to {name} in {city} on {date}.",
    "The shop in {city} packed {count} {item} for {name} on {date}.",
)

TRIPS = (
    "{name} flew from {start} to {goal} on {date}.",
    "On {date}, {name} took the train from {start} to {goal}.",
    "{name} left {start} on {date} and drove to {goal}.",
)
PERSONS = (
    "{name} is {age} years old and works as a {job} in {city}.",
    "{name} lives in {city}, is {age} years old and works as a {job}.",
    "In {city} there is a {job} called {name}, who is {age} years old.",
)
PETS = (
    "{name} has a {colour} {animal} called {pet}.",
    "The {colour} {animal} called {pet} belongs to {name}.",
    "{pet} is a {colour} {animal} that lives with {name}.",
)
MEETINGS = (
    "The talk about {topic} starts on {day} at {time} in room {room}.",
    "On {day} at {time}, {name} speaks about {topic} in room {room}.",
    "{name} teaches {topic} every {day} at {time} in {city}.",
)
PRICES = (
    "The {item} costs {price} dollars at the {shop} in {city}.",
    "{name} paid {price} dollars for a {item} at the {shop}.",
    "At the {shop} in {city} a {item} costs {price} dollars.",
)


def with_articles(text):
    """"a" becomes "an" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def order(rng):
    """An order and its five fields; the count is digits in the fields, digits or a word in the sentence."""
    number = count(rng)
    fields = {
        "name": full_name(rng),
        "count": str(number),
        "item": item(rng) + "s",
        "city": city(rng),
        "date": date(rng),
    }
    template = rng.choice(ORDERS)
    shown = dict(fields)
    if number <= 12 and rng.random() < 0.3:
        shown["count"] = number_in_words(number)
    sentence = template.format(**shown)
    return sentence[0].upper() + sentence[1:], fields


def scene(rng):
    """Any other family; only the fields that its sentence shows."""
    templates = rng.choice((TRIPS, PERSONS, PETS, MEETINGS, PRICES))
    template = rng.choice(templates)
    values = {
        "name": full_name(rng), "start": city(rng), "goal": city(rng), "city": city(rng), "date": date(rng),
        "age": str(rng.randint(18, 99)), "job": rng.choice(JOBS), "colour": rng.choice(COLOURS),
        "animal": rng.choice(ANIMALS), "pet": first_name(rng), "topic": rng.choice(TOPICS),
        "day": rng.choice(WEEKDAYS), "time": clock_time(rng), "room": str(rng.randint(1, 400)),
        "item": item(rng), "price": str(rng.randint(2, 999)), "shop": rng.choice(SHOPS),
    }
    fields = {key: value for key, value in values.items() if "{" + key + "}" in template}
    return with_articles(template.format(**values)), fields


def fact(rng):
    """An order, a scene, or a short plain sentence without fields worth naming."""
    chance = rng.random()
    if chance < 0.4:
        return order(rng)[0]
    if chance < 0.75:
        return scene(rng)[0]
    return plain(rng)


def plain(rng):
    """A short sentence of everyday words."""
    adjective, animal, place = rng.choice(ADJECTIVES), rng.choice(ANIMALS), rng.choice(PLACES)
    action, thing, name = rng.choice(ACTIONS), rng.choice(ITEMS), first_name(rng)
    return with_articles(rng.choice((
        f"The {adjective} {animal} {action} near the {place}.",
        f"{name} {action} in the {place} with the {animal}.",
        f"There is a {adjective} {thing} in the {place}.",
        f"{name} put the {thing} behind the {adjective} {place}.",
        f"The {animal} and the {rng.choice(ANIMALS)} share a {adjective} {thing}.",
        f"Every {rng.choice(WEEKDAYS)}, {name} {action} by the {place}.",
    )))


def story(rng):
    """Three to six sentences about one person, for plain-text reading."""
    name, home, animal, pet = first_name(rng), city(rng), rng.choice(ANIMALS), first_name(rng)
    opening = rng.choice((
        f"{name} lives in {home} with a {animal} called {pet}.",
        f"In {home} there was a {rng.choice(JOBS)} called {name}, who had a {animal} called {pet}.",
    ))
    middle = [rng.choice((
        f"One day {name} found a {item(rng)} in the {rng.choice(PLACES)}.",
        f"{pet} {rng.choice(ACTIONS)} near the {rng.choice(PLACES)} and {name} {rng.choice(ACTIONS)} in the {rng.choice(PLACES)}.",
        f"On {rng.choice(WEEKDAYS)} they went to the {rng.choice(PLACES)} to look for a {item(rng)}.",
        f"The {animal} liked the {item(rng)} very much.",
        f"{name} bought {count(rng)} {item(rng)}s at the {rng.choice(SHOPS)}.",
        f"It was a {rng.choice(ADJECTIVES)} day in {home}.",
    )) for _ in range(rng.randint(2, 5))]
    return with_articles(" ".join((opening, *middle, f"Then {name} and {pet} went home.")))
