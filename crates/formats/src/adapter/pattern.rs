//! Patterns that name modules, by PEFT's rule.

use regex::Regex;

/// A regular expression that names modules by their last parts, or by the whole of their name.
///
/// `q_proj` names every `model.layers.N.self_attn.q_proj`, `layers\.[0-3]\.mlp\.down_proj` those of four layers.
/// PEFT's `re.match(rf"(.*\.)?({pattern})$", module)`; Python's look-around and back-references are no part of it.
/// Matching takes time linear in the name, whatever the pattern.
#[derive(Debug, Clone)]
pub struct ModulePattern(Regex);

/// Bytes that a compiled pattern may take.
const COMPILED_BYTES: usize = 1 << 20;

impl ModulePattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let anchored = format!(r"^(?:.*\.)?(?:{pattern})$");
        let compiled = regex::RegexBuilder::new(&anchored).size_limit(COMPILED_BYTES).build();
        let last_line = |error: regex::Error| {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        };
        compiled.map(Self).map_err(last_line)
    }

    /// The pattern that names one module and no other.
    #[must_use]
    pub fn of_module(module: &str) -> String {
        format!("^{}", regex::escape(module))
    }

    /// Whether it names this module.
    #[must_use]
    pub fn matches(&self, module: &str) -> bool {
        self.0.is_match(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, module: &str) -> bool {
        ModulePattern::new(pattern).unwrap().matches(module)
    }

    #[test]
    fn a_pattern_names_the_end_of_a_module_or_all_of_it() {
        let module = "model.layers.11.self_attn.q_proj";
        for pattern in
            ["q_proj", "self_attn.q_proj", r"layers\.1\d\..*proj", ".*", &ModulePattern::of_module(module)]
        {
            assert!(matches(pattern, module), "{pattern}");
        }
        let other = ModulePattern::of_module("model.layers.1.self_attn.q_proj");
        for pattern in ["proj", "layers", r"layers\.1\..*", "q_proj.", &other] {
            assert!(!matches(pattern, module), "{pattern}");
        }
    }

    #[test]
    fn a_broken_pattern_says_what_is_wrong() {
        assert_eq!(ModulePattern::new("q_(proj").unwrap_err(), "unclosed group");
        assert!(ModulePattern::new("(?=x)").unwrap_err().contains("look-around"));
        assert!(ModulePattern::new(".{9999}{9999}").is_err());
    }
}
