//! WebAssembly in text form: told, so that it is refused by what it is.

/// How much of a file is looked at, in bytes: a text whose first comment is longer is not told.
pub const TEXT_HEAD: usize = 4096;

/// Whether a file that begins with this byte may be text: white space, a comment or a parenthesis. No other file is to be
/// looked at further, no program of the kernel's among them.
pub fn may_be_text(first: u8) -> bool {
    matches!(first, b' ' | b'\t' | b'\n' | b'\r' | b';' | b'(')
}

/// Whether what a file begins with is `(module` or `(component`, behind white space and comments (WebAssembly core
/// specification, 6.3.3).
pub fn is_text(head: &[u8]) -> bool {
    let Some(rest) = skip(head).strip_prefix(b"(") else { return false };
    let rest = skip(rest);
    let word = [&b"module"[..], b"component"].into_iter().find_map(|word| rest.strip_prefix(word));
    // Behind the word is what can't be part of it.
    word.is_some_and(|rest| rest.first().is_none_or(|byte| may_be_text(*byte) || matches!(byte, b')' | b'"')))
}

/// What is behind white space and comments.
fn skip(mut text: &[u8]) -> &[u8] {
    loop {
        text = text.trim_ascii_start();
        text = if text.starts_with(b";;") {
            let length = text.iter().position(|byte| *byte == b'\n');
            length.map_or(&[][..], |length| &text[length..])
        } else if text.starts_with(b"(;") {
            behind_block(text)
        } else {
            return text;
        };
    }
}

/// What is behind the block comment that the text begins with; blocks can hold blocks.
fn behind_block(text: &[u8]) -> &[u8] {
    let (mut depth, mut at) = (0, 0);
    while let Some(pair) = text.get(at..at + 2) {
        match pair {
            b"(;" => depth += 1,
            b";)" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return &text[at..];
        }
    }
    &[]
}
