//! Names of models as Ollama reads them: `host/namespace/model:tag`, any case, `latest` where no tag is given.

/// The longest name that is sent.
const LONGEST: usize = 350;

/// A name with its tag.
///
/// # Errors
/// What is wrong with it, as text.
pub(super) fn with_tag(name: &str) -> Result<String, String> {
    let wrong = |reason: &str| Err(format!("`{name}` is no name of a model: {reason}"));
    if name.is_empty() || name.len() > LONGEST {
        return wrong("it is empty, or too long");
    }
    let (path, tag) = match name.rsplit_once(':') {
        // What stands after a colon and has a slash is a host's port.
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, "latest"),
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.len() > 3 {
        return wrong("it has at most a host, a namespace and a model");
    }
    parts.push(tag);
    for (i, part) in parts.iter().enumerate() {
        let is_host = i == 0 && parts.len() == 4;
        let begins_well = part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !begins_well || !part.chars().all(|c| allowed(c) || (is_host && c == ':')) {
            return wrong(
                "a part begins with a letter, a digit or `_`, and has besides these only `-` and `.`",
            );
        }
    }
    Ok(format!("{path}:{tag}"))
}

/// Whether two names mean one model. Ollama lists models of its own library without host and namespace.
pub(super) fn is_same(a: &str, b: &str) -> bool {
    let plain = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let tagged = with_tag(&lower).unwrap_or(lower);
        let short = tagged.strip_prefix("registry.ollama.ai/").unwrap_or(&tagged).to_owned();
        short.strip_prefix("library/").map(str::to_owned).unwrap_or(short)
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_tag() {
        for (name, expected) in [
            ("qwen3", "qwen3:latest"),
            ("qwen3:4b", "qwen3:4b"),
            ("me/poet:q4_k_m", "me/poet:q4_k_m"),
            ("hf.co/me/poet:Q4_K_M", "hf.co/me/poet:Q4_K_M"),
            ("box:5000/me/poet", "box:5000/me/poet:latest"),
            ("_x:1.0", "_x:1.0"),
        ] {
            assert_eq!(with_tag(name).as_deref(), Ok(expected));
        }
        for name in ["", "a b", "../x", "x:", ":x", "-x", "a/b/c/d", "x\n", "a//b", &"x".repeat(400)] {
            assert!(with_tag(name).is_err(), "{name}");
        }
    }

    #[test]
    fn one_model_has_several_names() {
        assert!(is_same("Qwen3", "qwen3:latest"));
        assert!(is_same("registry.ollama.ai/library/qwen3:4b", "qwen3:4B"));
        assert!(!is_same("qwen3:4b", "qwen3:8b"));
        assert!(!is_same("me/qwen3", "qwen3"));
    }
}
