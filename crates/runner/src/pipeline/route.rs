//! Routers: which of a step's routes a text takes, by rules or by the answer of an expert.
//!
//! An expert is held to the names by a grammar, and its answer is looked up among them all the same: what a model or
//! a text says can choose one of the routes of the file and nothing else.

use regex::Regex;
use serde_json::{Value, json};

use super::rules::pattern;
use super::step::RouteRule;

/// A rule made ready.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    test: Test,
    route: String,
}

#[derive(Debug, Clone)]
enum Test {
    /// Lower case.
    Contains(String),
    Matches(Regex),
}

impl Rule {
    /// Compiles a rule; the error says what is wrong with it.
    pub(super) fn new(rule: &RouteRule) -> Result<Self, String> {
        let test = match (&rule.contains, &rule.matches) {
            (Some(text), None) if text.is_empty() => {
                return Err("`contains` is empty, so it would always hold".to_owned());
            }
            (Some(text), None) => Test::Contains(text.to_lowercase()),
            (None, Some(source)) => Test::Matches(pattern(source)?),
            _ => return Err("give either `contains` or `matches`".to_owned()),
        };
        Ok(Self { test, route: rule.route.clone() })
    }

    fn holds(&self, text: &str) -> bool {
        match &self.test {
            Test::Contains(part) => text.to_lowercase().contains(part),
            Test::Matches(pattern) => pattern.is_match(text),
        }
    }
}

/// The route of the first rule that holds.
pub(super) fn by_rules<'a>(rules: &'a [Rule], text: &str) -> Option<&'a str> {
    rules.iter().find(|rule| rule.holds(text)).map(|rule| rule.route.as_str())
}

/// The schema that holds an expert to the names.
pub(super) fn schema(routes: &[String]) -> Value {
    json!({"type": "string", "enum": routes})
}

/// The route that an answer names; an engine without grammars may answer without the quotes of JSON.
pub(super) fn named<'a>(routes: &'a [String], answer: &str) -> Option<&'a str> {
    let said = serde_json::from_str::<String>(answer.trim()).unwrap_or_else(|_| answer.trim().to_owned());
    routes.iter().find(|route| **route == said).map(String::as_str)
}

/// A name: 1 to 64 letters, digits, `_`, `-` and spaces within.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
    let ends = |c: Option<char>| c.is_some_and(|c| c != ' ');
    let is_good = name.chars().count() <= 64
        && name.chars().all(allowed)
        && ends(name.chars().next())
        && ends(name.chars().last());
    match is_good {
        true => Ok(()),
        false => {
            Err(format!("`{name}`: a route's name has 1 to 64 letters, digits, `_`, `-` and spaces within"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(contains: Option<&str>, matches: Option<&str>, route: &str) -> Result<Rule, String> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Rule::new(&RouteRule { contains: text(contains), matches: text(matches), route: route.to_owned() })
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let rules = [
            rule(Some("Refund"), None, "money").unwrap(),
            rule(None, Some(r"(?i)\berror \d+"), "bug").unwrap(),
            rule(Some("error"), None, "question").unwrap(),
        ];
        assert_eq!(by_rules(&rules, "I want a REFUND for error 7"), Some("money"));
        assert_eq!(by_rules(&rules, "Error 12 again"), Some("bug"));
        assert_eq!(by_rules(&rules, "what is an error"), Some("question"));
        assert_eq!(by_rules(&rules, "hello"), None);
        assert!(rule(None, None, "x").is_err() && rule(Some("a"), Some("b"), "x").is_err());
        assert!(rule(Some(""), None, "x").is_err() && rule(None, Some("("), "x").is_err());
    }

    #[test]
    fn only_a_name_of_the_file_is_a_route() {
        let routes = ["bug", "other"].map(str::to_owned);
        assert_eq!(named(&routes, "\"bug\""), Some("bug"));
        assert_eq!(named(&routes, " bug\n"), Some("bug"));
        for hostile in ["", "Bug", "../bug", "bug, other", "{\"route\": \"bug\"}", "\"bug", "steps.x.output"]
        {
            assert_eq!(named(&routes, hostile), None, "{hostile}");
        }
        assert!(check_name("needs review").is_ok());
        for bad in ["", " a", "a ", "a\nb", "a\"b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
