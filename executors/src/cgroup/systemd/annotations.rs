//! Annotations → further properties of a container's unit: pure. `org.systemd.property.NAME` has a value in GVariant's text
//! format, as runc has it (its docs/systemd.md): `'inactive'`, `true`, `uint64 5`, `['a.service', 'b.service']`.

use std::collections::HashMap;

use zbus::zvariant::Value;

use crate::error::{Result, bail};

/// What the annotations' names begin with.
pub(crate) const PREFIX: &str = "org.systemd.property.";

/// A property's name and its value.
pub(super) type Named = (String, Value<'static>);

/// The properties, in the order of their names.
///
/// # Errors
/// InvalidArgument, with the annotation's name, for what is no name of a property, or no boolean, string, integer or list of
/// strings.
pub(super) fn properties(annotations: &HashMap<String, String>) -> Result<Vec<Named>> {
    let mut properties = Vec::new();
    for (annotation, text) in annotations {
        let Some(name) = annotation.strip_prefix(PREFIX) else { continue };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            bail!(InvalidArgument, "annotation {annotation}: no name of a property");
        }
        let property = match name.strip_suffix("Sec") {
            // On D-Bus times are in microseconds, but for what is in them already, USec.
            Some(stem) if stem.ends_with(|last: char| last.is_ascii_lowercase()) => {
                microseconds(text).map(|value| (format!("{stem}USec"), value))
            }
            _ => value(text).map(|value| (name.to_owned(), value)),
        };
        match property {
            Some(property) => properties.push(property),
            None => bail!(InvalidArgument, "annotation {annotation}: {text:?} is no value that is known here"),
        }
    }
    properties.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(properties)
}

fn value(text: &str) -> Option<Value<'static>> {
    let text = text.trim();
    match text {
        "true" => return Some(Value::from(true)),
        "false" => return Some(Value::from(false)),
        _ => {}
    }
    if let Some(list) = text.strip_prefix('[') {
        return strings(list.strip_suffix(']')?).map(Value::from);
    }
    if text.starts_with(['\'', '"']) {
        let (string, rest) = string(text)?;
        return rest.is_empty().then(|| Value::from(string));
    }
    let (kind, number) = text.split_once(char::is_whitespace).unwrap_or(("int32", text));
    let number = number.trim();
    Some(match kind {
        "byte" | "@y" => Value::from(number.parse::<u8>().ok()?),
        "int16" | "@n" => Value::from(number.parse::<i16>().ok()?),
        "uint16" | "@q" => Value::from(number.parse::<u16>().ok()?),
        "int32" | "@i" => Value::from(number.parse::<i32>().ok()?),
        "uint32" | "@u" => Value::from(number.parse::<u32>().ok()?),
        "int64" | "@x" => Value::from(number.parse::<i64>().ok()?),
        "uint64" | "@t" => Value::from(number.parse::<u64>().ok()?),
        _ => return None,
    })
}

/// A number of seconds, whatever its type.
fn microseconds(text: &str) -> Option<Value<'static>> {
    const SECOND: u64 = 1_000_000;
    let number = text.trim().rsplit(char::is_whitespace).next()?;
    if let Ok(seconds) = number.parse::<u64>() {
        return seconds.checked_mul(SECOND).map(Value::from);
    }
    let seconds = number.parse::<f64>().ok().filter(|seconds| (0.0..1e12).contains(seconds))?;
    Some(Value::from((seconds * SECOND as f64) as u64))
}

fn strings(list: &str) -> Option<Vec<String>> {
    let (mut strings, mut rest) = (Vec::new(), list.trim());
    while !rest.is_empty() {
        let (next, behind) = string(rest)?;
        strings.push(next);
        rest = match behind.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if behind.is_empty() => behind,
            None => return None,
        };
    }
    Some(strings)
}

/// The string in quotes that the text begins with, and what is behind it and spaces.
fn string(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|first| matches!(first, '\'' | '"'))?;
    let (mut string, mut letters) = (String::new(), text.char_indices().skip(1));
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => match letters.next()?.1 {
                quoted @ ('\\' | '\'' | '"') => string.push(quoted),
                _ => return None,
            },
            letter if letter == quote => return Some((string, text.get(at + 1..)?.trim_start())),
            letter => string.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Result<Vec<Named>> {
        let other = ("a.b".to_owned(), "anything".to_owned());
        properties(&HashMap::from([(format!("{PREFIX}{name}"), text.to_owned()), other]))
    }

    #[test]
    fn values_have_the_types_that_they_say() {
        for (name, text, property, value) in [
            ("CollectMode", "'inactive'", "CollectMode", Value::from("inactive")),
            ("Description", r#""it's \"so\"""#, "Description", Value::from("it's \"so\"")),
            ("SendSIGHUP", "true", "SendSIGHUP", Value::from(true)),
            ("TasksMax", "uint64 5", "TasksMax", Value::from(5u64)),
            ("TasksMax", "@t 5", "TasksMax", Value::from(5u64)),
            ("KillSignal", "15", "KillSignal", Value::from(15i32)),
            ("TimeoutStopUSec", "uint64 7", "TimeoutStopUSec", Value::from(7u64)),
            ("TimeoutStopSec", "7", "TimeoutStopUSec", Value::from(7_000_000u64)),
            ("TimeoutStopSec", "uint32 7", "TimeoutStopUSec", Value::from(7_000_000u64)),
            ("TimeoutStopSec", "0.5", "TimeoutStopUSec", Value::from(500_000u64)),
            ("After", "['a.service', 'b.service']", "After", Value::from(vec!["a.service", "b.service"])),
            ("After", "[]", "After", Value::from(Vec::<String>::new())),
        ] {
            assert_eq!(of(name, text).unwrap(), [(property.to_owned(), value)], "{name}: {text}");
        }
    }

    #[test]
    fn what_is_no_property_is_refused_by_name() {
        for (name, text) in [
            ("ab", "true"),
            ("a-b-c", "true"),
            ("Wants", "['a'"),
            ("Wants", "['a' 'b']"),
            ("Wants", "'a"),
            ("Wants", "'a' b"),
            ("Wants", "a.service"),
            ("TasksMax", "uint64 -5"),
            ("TasksMax", "float 5"),
            ("TimeoutStopSec", "-1"),
            ("TimeoutStopSec", "'5'"),
            ("Wants", ""),
        ] {
            let error = of(name, text).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::InvalidArgument);
            assert!(error.to_string().contains(PREFIX), "{error}");
        }
    }
}
