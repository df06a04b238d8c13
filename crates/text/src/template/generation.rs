//! The `{% generation %}` tag, with which a template marks what an assistant generates.
//!
//! It is written as a filter block, which cuts white space as the tag does: `{%- filter ... -%}`.

/// Variables that hold the marks; nothing is put around where they are not set.
pub(super) const OPEN: &str = "__generation_open";
pub(super) const CLOSE: &str = "__generation_close";

const FILTER: &str = "filter __generation(__generation_open, __generation_close)";

/// The template with `generation` blocks as filter blocks, and whether it has any.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut rewritten = String::with_capacity(source.len());
    let (mut rest, mut any) = (source, false);
    while let Some(at) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        rewritten.push_str(&rest[..at]);
        rest = &rest[at..];
        let closing = if rest.starts_with("{#") { "#}" } else { "%}" };
        let end = rest.find(closing).map_or(rest.len(), |end| end + closing.len());
        let tag = &rest[..end];
        let name = tag.trim_matches(['{', '%', '}', '-', '+']).trim();
        match name {
            "generation" => rewritten.push_str(&tag.replacen("generation", FILTER, 1)),
            "endgeneration" => rewritten.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => rewritten.push_str(tag),
        }
        any |= name == "generation";
        rest = &rest[end..];
    }
    rewritten.push_str(rest);
    (rewritten, any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_rewritten_with_their_dashes() {
        let (rewritten, any) =
            rewrite("{#- generation #}a{%- generation -%} b {% endgeneration +%}{{ generation }}");
        assert!(any);
        let expected =
            format!("{{#- generation #}}a{{%- {FILTER} -%}} b {{% endfilter +%}}{{{{ generation }}}}");
        assert_eq!(rewritten, expected);
        assert_eq!(rewrite("{% if generation %}{"), ("{% if generation %}{".to_owned(), false));
    }
}
