//! HTML of which only the parts that stand in this program's source can be markup: every other text is escaped.

/// A page, or a part of one, that is being written.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    /// Appends markup, which only a literal can be.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0 += markup;
        self
    }

    /// Appends text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        escape(text, &mut self.0);
        self
    }

    /// Appends an element with what `body` writes into it.
    pub fn element(
        &mut self,
        tag: &'static str,
        attributes: &[(&'static str, &str)],
        body: impl FnOnce(&mut Self),
    ) -> &mut Self {
        self.open(tag, attributes);
        body(self);
        self.raw("</").raw(tag).raw(">")
    }

    /// Appends an element that holds nothing but text.
    pub fn leaf(&mut self, tag: &'static str, class: &'static str, text: &str) -> &mut Self {
        let attributes: &[_] = if class.is_empty() { &[] } else { &[("class", class)] };
        self.element(tag, attributes, |html| {
            html.text(text);
        })
    }

    /// Appends the opening tag alone.
    pub fn open(&mut self, tag: &'static str, attributes: &[(&'static str, &str)]) -> &mut Self {
        self.raw("<").raw(tag);
        for (name, value) in attributes {
            self.raw(" ").raw(name).raw("=\"").text(value).raw("\"");
        }
        self.raw(">")
    }

    /// The whole of it.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// Escapes for text and for quoted attributes; control characters are shown by their pictures.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => *out += "&amp;",
            '<' => *out += "&lt;",
            '>' => *out += "&gt;",
            '"' => *out += "&quot;",
            '\'' => *out += "&#39;",
            '\n' | '\t' => out.push(c),
            '\0'..='\x1f' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\x7f' => out.push('\u{2421}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// The base64 of bytes, as a content security policy has its hashes.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let is_there = digit <= group.len();
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if is_there { DIGITS[value] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let mut html = Html::default();
        let hostile = "</pre><script>alert(1)</script>\x1b[2J\0\u{9b}\" onload='x' &lt;";
        html.element("p", &[("title", hostile)], |html| {
            html.text("a < b\n").leaf("b", "", hostile);
        });
        expect![[r#"
            <p title="&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;␛[2J␀�&quot; onload=&#39;x&#39; &amp;lt;">a &lt; b
            <b>&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;␛[2J␀�&quot; onload=&#39;x&#39; &amp;lt;</b></p>"#]].assert_eq(&html.into_string());
    }

    /// RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_standard() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }
}
