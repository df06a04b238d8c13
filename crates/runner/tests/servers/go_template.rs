//! As much of Go's template language as a frame around messages needs, read by rules of its own: what a server would
//! render of a template that was written for it.

/// A template's nodes.
#[derive(Debug)]
enum Node {
    Text(String),
    Content,
    Range(Vec<Node>),
    /// Branches in order: the role that one is for, and what it renders.
    If(Vec<(String, Vec<Node>)>),
}

/// Renders messages of role and content.
pub fn render(template: &str, messages: &[(String, String)]) -> String {
    let mut tokens = tokens(template).into_iter().peekable();
    let nodes = nodes(&mut tokens);
    assert!(tokens.next().is_none(), "an end without a beginning: {template}");
    run(&nodes, messages, None)
}

#[derive(Debug, PartialEq)]
enum Token {
    Text(String),
    Action(String),
}

fn tokens(template: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{{") {
        tokens.push(Token::Text(text.to_owned()));
        let (action, after) = after.split_once("}}").expect("an action that is closed");
        tokens.push(Token::Action(action.trim().to_owned()));
        rest = after;
    }
    tokens.push(Token::Text(rest.to_owned()));
    tokens
}

fn nodes(tokens: &mut std::iter::Peekable<std::vec::IntoIter<Token>>) -> Vec<Node> {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.peek() {
        match token {
            Token::Action(action) if action == "end" || action.starts_with("else") => break,
            _ => {}
        }
        match tokens.next().unwrap() {
            Token::Text(text) => nodes.push(Node::Text(text)),
            Token::Action(action) if action == ".Content" => nodes.push(Node::Content),
            Token::Action(action) if action == "range .Messages" => {
                nodes.push(Node::Range(self::nodes(tokens)));
                assert_eq!(tokens.next(), Some(Token::Action("end".into())));
            }
            Token::Action(action) => {
                let mut branches = vec![(role(&action, "if"), self::nodes(tokens))];
                loop {
                    match tokens.next().expect("an end") {
                        Token::Action(action) if action == "end" => break,
                        Token::Action(action) => {
                            branches.push((role(&action, "else if"), self::nodes(tokens)))
                        }
                        Token::Text(text) => panic!("{text}"),
                    }
                }
                nodes.push(Node::If(branches));
            }
        }
    }
    nodes
}

/// The role of `if eq .Role "user"`.
fn role(action: &str, word: &str) -> String {
    let rest = action.strip_prefix(word).unwrap_or_else(|| panic!("no action of ours: {action}"));
    let rest = rest.trim().strip_prefix("eq .Role ").expect("a comparison of roles");
    serde_json::from_str(rest).expect("a quoted role")
}

fn run(nodes: &[Node], messages: &[(String, String)], of: Option<&(String, String)>) -> String {
    let mut text = String::new();
    for node in nodes {
        match node {
            Node::Text(plain) => text += plain,
            Node::Content => text += &of.expect("a message").1,
            Node::Range(body) => {
                text.extend(messages.iter().map(|message| run(body, messages, Some(message))))
            }
            Node::If(branches) => {
                let role = &of.expect("a message").0;
                if let Some((_, body)) = branches.iter().find(|(branch, _)| branch == role) {
                    text += &run(body, messages, of);
                }
            }
        }
    }
    text
}
