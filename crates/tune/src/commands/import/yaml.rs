//! YAML of other tools as a tree with line numbers: bounded in depth and in nodes while it is read.
//!
//! An alias stands for a copy of what its anchor names, and copies count, so that a text of a few hundred bytes that
//! unfolds into gigabytes is refused after some thousand nodes. Words are understood as PyYAML does, with which all of
//! these tools read (YAML 1.1), but for numbers such as `1e-5`, which PyYAML takes for text and every tool repairs.

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::collections::BTreeMap;

/// A configuration is written by hand.
const MOST_NODES: usize = 20_000;
const DEEPEST: usize = 24;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Null,
    Switch(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    /// Line of the key, from 1.
    pub line: usize,
    pub node: Node,
}

/// What is wrong with a text, and where.
#[derive(Debug, PartialEq)]
pub struct Fault {
    pub line: usize,
    pub reason: String,
}

/// Parses one document.
pub fn parse(text: &str) -> Result<Node, Fault> {
    let mut reader =
        Reader { parser: Parser::new_from_str(text), n_nodes: 0, anchors: BTreeMap::new(), line: 1 };
    let mut root = None;
    loop {
        match reader.next()? {
            Event::StreamEnd => return root.ok_or_else(|| reader.fault("the file is empty")),
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if root.is_some() => return Err(reader.fault("a second document begins")),
            event => root = Some(reader.node(event, 0)?),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    n_nodes: usize,
    anchors: BTreeMap<usize, (Node, usize)>,
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, Fault> {
        match self.parser.next_event() {
            Some(Ok((event, Span { start, .. }))) => {
                self.line = start.line();
                Ok(event)
            }
            Some(Err(error)) => Err(Fault { line: error.marker().line(), reason: error.info().to_owned() }),
            None => Ok(Event::StreamEnd),
        }
    }

    fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault { line: self.line, reason: reason.into() }
    }

    fn count(&mut self, n_nodes: usize) -> Result<(), Fault> {
        self.n_nodes += n_nodes;
        if self.n_nodes <= MOST_NODES {
            return Ok(());
        }
        Err(self.fault(format!("the file has more than {MOST_NODES} values, copies by aliases counted")))
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, Fault> {
        if depth > DEEPEST {
            return Err(self.fault(format!("values are nested more than {DEEPEST} deep")));
        }
        self.count(1)?;
        let before = self.n_nodes;
        let (anchor, node) = match event {
            Event::Alias(anchor) => {
                // An anchor that is inside itself is not known yet.
                let (node, n_nodes) =
                    self.anchors.get(&anchor).cloned().ok_or_else(|| self.fault("an alias of nothing"))?;
                self.count(n_nodes)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check_tag(tag.as_deref())?;
                let is_text =
                    style != ScalarStyle::Plain || tag.as_ref().is_some_and(|tag| tag.suffix == "str");
                (anchor, if is_text { Node::Text(text.into_owned()) } else { word(&text) })
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref())?;
                (anchor, self.list(depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref())?;
                (anchor, self.map(depth)?)
            }
            other => return Err(self.fault(format!("unexpected {other:?}"))),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.n_nodes - before + 1));
        }
        Ok(node)
    }

    /// `!!str` says what a value is anyway; other tags make objects of programs.
    fn check_tag(&self, tag: Option<&Tag>) -> Result<(), Fault> {
        const PLAIN: [&str; 7] = ["str", "int", "float", "bool", "null", "seq", "map"];
        match tag {
            Some(tag) if !tag.is_yaml_core_schema() || !PLAIN.contains(&tag.suffix.as_str()) => {
                Err(self.fault("a tag makes an object of a program, which no configuration needs"))
            }
            _ => Ok(()),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Node, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Node::List(items)),
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Node, Fault> {
        let (mut entries, mut merged): (Vec<Entry>, Vec<Entry>) = (Vec::new(), Vec::new());
        loop {
            let event = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let line = self.line;
            let key = match self.node(event, depth + 1)? {
                Node::Text(key) => key,
                Node::List(_) | Node::Map(_) => return Err(self.fault("a key is a list or a map")),
                other => show(&other),
            };
            let event = self.next()?;
            let node = self.node(event, depth + 1)?;
            if key == "<<" {
                merged.extend(merge(node).ok_or_else(|| self.fault("`<<` merges what is no map"))?);
            } else if entries.iter().any(|entry| entry.key == key) {
                return Err(Fault { line, reason: format!("the key `{}` occurs twice", plain(&key)) });
            } else {
                entries.push(Entry { key, line, node });
            }
        }
        // What a map says itself stands before what it takes from others, and the first of those before the next.
        for entry in merged {
            if entries.iter().all(|own| own.key != entry.key) {
                entries.push(entry);
            }
        }
        Ok(Node::Map(entries))
    }
}

fn merge(node: Node) -> Option<Vec<Entry>> {
    match node {
        Node::Map(entries) => Some(entries),
        Node::List(items) => Some(items.into_iter().map(merge).collect::<Option<Vec<_>>>()?.concat()),
        _ => None,
    }
}

/// A word without quotes.
fn word(text: &str) -> Node {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Node::Switch(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Node::Switch(false);
        }
        _ => {}
    }
    let begins_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let digits = text.replace('_', "");
    if !begins_like_a_number {
        return Node::Text(text.to_owned());
    }
    if let Ok(whole) = digits.parse::<i64>() {
        return Node::Whole(whole);
    }
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() => Node::Number(number),
        _ => Node::Text(text.to_owned()),
    }
}

/// A value on one line, as a person would write it, cut where it would fill the screen.
pub fn show(node: &Node) -> String {
    const LONGEST: usize = 60;
    let whole = match node {
        Node::Null => "nothing".into(),
        Node::Switch(on) => on.to_string(),
        Node::Whole(whole) => whole.to_string(),
        Node::Number(number) => crate::recipe_text::number(*number),
        Node::Text(text) => plain(text),
        Node::List(items) => {
            let shown: Vec<_> = items.iter().take(LONGEST).map(show).collect();
            format!("[{}]", shown.join(", "))
        }
        Node::Map(entries) => {
            let shown = entries.iter().take(LONGEST);
            let shown: Vec<_> =
                shown.map(|entry| format!("{}: {}", plain(&entry.key), show(&entry.node))).collect();
            format!("{{{}}}", shown.join(", "))
        }
    };
    if whole.chars().count() <= LONGEST {
        return whole;
    }
    whole.chars().take(LONGEST).chain(['…']).collect()
}

/// Text with line breaks and control characters made visible.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use std::time::{Duration, Instant};

    /// A tenth of a second on an idle machine; what is not bounded takes hours, or all memory.
    const SOON: Duration = Duration::from_secs(30);

    fn check(text: &str, expected: Expect) {
        let started = Instant::now();
        let shown = match parse(text) {
            Ok(Node::Map(entries)) => {
                let line = |e: &Entry| format!("{} {}: {:?}", e.line, e.key, e.node);
                entries.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Ok(other) => format!("{other:?}"),
            Err(fault) => format!("line {}: {}", fault.line, fault.reason),
        };
        expected.assert_eq(&shown);
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }

    #[test]
    fn words_are_what_python_takes_them_for() {
        check(
            "a: yes\nb: Off\nc: ~\nd:\ne: 1_000\nf: 2e-4\ng: '16'\nh: .5\ni: 1.2.3\nj: nan\nk: -3\nl: \"x # y\" # z\n",
            expect![[r#"
                1 a: Switch(true)
                2 b: Switch(false)
                3 c: Null
                4 d: Null
                5 e: Whole(1000)
                6 f: Number(0.0002)
                7 g: Text("16")
                8 h: Number(0.5)
                9 i: Text("1.2.3")
                10 j: Text("nan")
                11 k: Whole(-3)
                12 l: Text("x # y")"#]],
        );
    }

    #[test]
    fn lists_maps_aliases_and_merges() {
        check(
            "a: &x [q, v]\nb: *x\nc: {d: 1, e: {f: 2}}\ng:\n- h: 1\n  i: 2\nj: &y {k: 1, l: 2}\nm:\n  <<: *y\n  l: 3\n",
            expect![[r#"
                1 a: List([Text("q"), Text("v")])
                2 b: List([Text("q"), Text("v")])
                3 c: Map([Entry { key: "d", line: 3, node: Whole(1) }, Entry { key: "e", line: 3, node: Map([Entry { key: "f", line: 3, node: Whole(2) }]) }])
                4 g: List([Map([Entry { key: "h", line: 5, node: Whole(1) }, Entry { key: "i", line: 6, node: Whole(2) }])])
                7 j: Map([Entry { key: "k", line: 7, node: Whole(1) }, Entry { key: "l", line: 7, node: Whole(2) }])
                8 m: Map([Entry { key: "l", line: 10, node: Whole(3) }, Entry { key: "k", line: 7, node: Whole(1) }])"#]],
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        check("", expect!["line 1: the file is empty"]);
        check("a: 1\nb: [1, 2\n", expect!["line 3: while parsing a flow sequence, expected ',' or ']'"]);
        check("a: 1\n---\nb: 2\n", expect!["line 3: a second document begins"]);
        check("a: 1\na: 2\n", expect!["line 2: the key `a` occurs twice"]);
        check("? [a, b]\n: 1\n", expect!["line 1: a key is a list or a map"]);
        check("a: *nowhere\n", expect!["line 1: while parsing node, found unknown anchor"]);
        check("a: &x [*x]\n", expect!["line 1: an alias of nothing"]);
        check(
            "a: !!python/object:os.system x\n",
            expect!["line 1: a tag makes an object of a program, which no configuration needs"],
        );
        check(
            "a: !!python/tuple [1]\n",
            expect!["line 1: a tag makes an object of a program, which no configuration needs"],
        );
        check("a: !!str 1\n", expect![[r#"1 a: Text("1")"#]]);
        check(
            "a: !mine x\n",
            expect!["line 1: a tag makes an object of a program, which no configuration needs"],
        );
    }

    #[test]
    fn hostile_texts_are_refused_soon() {
        let mut laughs = "a0: &a0 [lol, lol]\n".to_owned();
        for i in 1..40 {
            laughs +=
                &format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1);
        }
        check(&laughs, expect!["line 5: the file has more than 20000 values, copies by aliases counted"]);
        check(&"[".repeat(500_000), expect!["line 1: recursion limit exceeded"]);
        check(&"{a: ".repeat(200_000), expect!["line 1: recursion limit exceeded"]);
        let nested: String = (0..700).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        check(&nested, expect!["line 25: values are nested more than 24 deep"]);
        check(
            &"- 1\n".repeat(200_000),
            expect!["line 20000: the file has more than 20000 values, copies by aliases counted"],
        );
        check(&format!("a: {}\n", "x".repeat(900_000))[..20], expect![[r#"1 a: Text("xxxxxxxxxxxxxxxxx")"#]]);
        let keys: String = (0..30_000).map(|i| format!("k{i}: 1\n")).collect();
        check(&keys, expect!["line 10000: the file has more than 20000 values, copies by aliases counted"]);
        check(&"? ".repeat(400_000), expect!["line 1: values are nested more than 24 deep"]);
        check(&"- ".repeat(400_000), expect!["line 1: values are nested more than 24 deep"]);
    }
}
