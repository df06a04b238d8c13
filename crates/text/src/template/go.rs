//! A chat template in Go's template language, as Ollama's own templates are.
//!
//! Where a chat template does nothing but put a fixed frame around each message (ChatML, and its relatives), the same
//! frame can be written in Go. Whether it does is found from what the template renders, not from its source.

use super::{ChatTemplate, GenerationPrompt};
use crate::Message;

/// The template in Go's language, where it can be written in it; `bos` is what the server itself puts in front.
pub fn go_template(template: &ChatTemplate, bos: &str) -> Option<String> {
    Frame::of(template, bos)?.to_go()
}

/// What stands before and after the content of each role, and where the assistant is to answer.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// `None` where the template takes no system message.
    system: Option<(String, String)>,
    user: (String, String),
    assistant: (String, String),
    generation: String,
}

/// Stands for a content while the frame around it is looked for.
const MARK: &str = "zqxcontentxqz";

/// Contents that templates are known to treat specially: blanks at the ends, reasoning, markup.
const PROBES: [&str; 3] = ["  blank \n", "<think>\nwhy\n</think>\n\nso", "{{ x }} <b>"];

impl Frame {
    /// The frame of a template, if it is nothing but one.
    fn of(template: &ChatTemplate, bos: &str) -> Option<Frame> {
        let render = |messages: &[(&str, &str)], prompt| {
            let messages: Vec<_> =
                messages.iter().map(|&(role, content)| Message::new(role, content)).collect();
            let text = template.render(&messages, prompt).ok()?;
            Some(text.strip_prefix(bos).unwrap_or(&text).to_owned())
        };
        let asked = render(&[("user", MARK)], GenerationPrompt::Omit)?;
        let generation = render(&[("user", MARK)], GenerationPrompt::Add)?.strip_prefix(&asked)?.to_owned();
        let user = around(&asked)?;
        let answered = render(&[("user", ""), ("assistant", MARK)], GenerationPrompt::Omit)?;
        let assistant = around(answered.strip_prefix(&(user.0.clone() + &user.1))?)?;
        let instructed = render(&[("system", MARK), ("user", "")], GenerationPrompt::Omit);
        let system = match instructed {
            Some(text) => Some(around(text.strip_suffix(&(user.0.clone() + &user.1))?)?),
            None => None,
        };
        let frame = Frame { system, user, assistant, generation };
        frame.holds(render).then_some(frame)
    }

    /// Whether framing gives what the template renders, on conversations that bring out what else it does.
    fn holds(&self, render: impl Fn(&[(&str, &str)], GenerationPrompt) -> Option<String>) -> bool {
        let mut conversations =
            vec![vec![("user", "a")], vec![("user", "a"), ("assistant", "b"), ("user", "c")]];
        for probe in PROBES {
            conversations.push(vec![("user", probe)]);
            conversations.push(vec![("user", "a"), ("assistant", probe), ("user", "c")]);
        }
        if self.system.is_some() {
            let with_system: Vec<_> = conversations
                .iter()
                .map(|turns| [&[("system", " be brief ")], &turns[..]].concat())
                .collect();
            conversations.extend(with_system);
        }
        conversations.iter().all(|turns| render(turns, GenerationPrompt::Add) == Some(self.frame(turns)))
    }

    fn frame(&self, turns: &[(&str, &str)]) -> String {
        let framed = turns.iter().map(|&(role, content)| {
            let none = (String::new(), String::new());
            let (before, after) = match role {
                "system" => self.system.as_ref().unwrap_or(&none),
                "user" => &self.user,
                _ => &self.assistant,
            };
            format!("{before}{content}{after}")
        });
        framed.collect::<String>() + &self.generation
    }

    /// The frame in Go's template language; `None` where its text could be taken for something else.
    fn to_go(&self) -> Option<String> {
        let roles = [
            ("system", self.system.as_ref()),
            ("user", Some(&self.user)),
            ("assistant", Some(&self.assistant)),
        ];
        let mut branches = String::new();
        for (role, frame) in roles {
            let Some((before, after)) = frame else { continue };
            let word = if branches.is_empty() { "if" } else { "else if" };
            branches += &format!("{{{{ {word} eq .Role \"{role}\" }}}}{before}{{{{ .Content }}}}{after}");
        }
        let go = format!("{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{}", self.generation);
        let literal = format!("{:?}{}", self, self.generation);
        let is_plain = !literal.contains("{{") && !literal.contains("}}");
        is_plain.then_some(go)
    }
}

/// What stands before and after the mark, if it stands there once.
fn around(text: &str) -> Option<(String, String)> {
    let (before, after) = text.split_once(MARK)?;
    (!after.contains(MARK)).then(|| (before.to_owned(), after.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn check_is_left(source: &str) {
        let template = ChatTemplate::from_source(source, "<s>", "</s>").unwrap();
        assert_eq!(Frame::of(&template, "<s>").and_then(|frame| frame.to_go()), None, "{source}");
    }

    #[test]
    fn templates_that_do_more_are_left_to_the_file() {
        check_is_left(&CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"));
        check_is_left(&CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"));
        check_is_left(&format!("{{% if messages[0].role != 'system' %}}Default.{{% endif %}}{CHATML}"));
        check_is_left(&CHATML.replace("<|im_end|>", "{{ '{{' }}"));
    }

    #[test]
    fn what_the_server_adds_itself_is_not_in_the_frame() {
        let template =
            ChatTemplate::from_source(&format!("{{{{ bos_token }}}}{CHATML}"), "<s>", "</s>").unwrap();
        let frame = Frame::of(&template, "<s>").unwrap();
        assert_eq!(frame.user, ("<|im_start|>user\n".to_owned(), "<|im_end|>\n".to_owned()));
    }

    #[test]
    fn a_template_that_refuses_system_messages_has_no_branch_for_them() {
        let source = format!(
            "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}{CHATML}"
        );
        let template = ChatTemplate::from_source(&source, "", "").unwrap();
        let frame = Frame::of(&template, "").unwrap();
        assert_eq!(frame.system, None);
        assert!(!frame.to_go().unwrap().contains("system"));
    }
}
