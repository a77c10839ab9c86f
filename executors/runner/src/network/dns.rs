//! Messages of DNS: a question for addresses, and its answer (RFC 1035, section 4; RFC 3596 for AAAA).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The types of record that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    A = 1,
    Aaaa = 28,
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name exists; it may have no address of the type.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoName,
    /// It doesn't fit into a datagram.
    Truncated,
    /// The server can't or won't say.
    Failed,
}

/// The length of a header.
const HEADER: usize = 12;

const INTERNET: u16 = 1;

/// The question for a name's records. `None` for a name that DNS can't have: labels of 1 to 63 bytes, 253 in all.
pub fn question(id: u16, name: &str, record: Record) -> Option<Vec<u8>> {
    const RECURSION_DESIRED: u16 = 1 << 8;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 {
        return None;
    }
    let mut message = Vec::with_capacity(HEADER + name.len() + 6);
    for word in [id, RECURSION_DESIRED, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend((record as u16).to_be_bytes());
    message.extend(INTERNET.to_be_bytes());
    Some(message)
}

/// The answer to `question`, which [`question`] made. `None` for a message that is no answer to it, and may be forged.
pub fn answer(question: &[u8], message: &[u8]) -> Option<Answer> {
    const RESPONSE: u16 = 1 << 15;
    const TRUNCATED: u16 = 1 << 9;
    let asked = question.get(HEADER..)?;
    let flags = word(message, 2)?;
    if message.get(..2) != question.get(..2) || flags & RESPONSE == 0 {
        return None;
    }
    if word(message, 4)? == 0 && flags & 15 != 0 {
        // Some servers leave the question out of an error.
        return Some(Answer::Failed);
    }
    let repeated = message.get(HEADER..HEADER + asked.len())?;
    if word(message, 4)? != 1 || !repeated.eq_ignore_ascii_case(asked) {
        return None;
    }
    match flags & 15 {
        0 => {}
        3 => return Some(Answer::NoName),
        _ => return Some(Answer::Failed),
    }
    if flags & TRUNCATED != 0 {
        return Some(Answer::Truncated);
    }
    Some(addresses(message, HEADER + asked.len(), word(question, question.len() - 4)?).unwrap_or(Answer::Failed))
}

/// The addresses of the answer section, which begins at `at`. Those behind an alias are in it too: the server follows it.
fn addresses(message: &[u8], mut at: usize, record: u16) -> Option<Answer> {
    let mut addresses = Vec::new();
    for _ in 0..word(message, 6)? {
        at = behind_name(message, at)?;
        let (ty, class, length) = (word(message, at)?, word(message, at + 2)?, usize::from(word(message, at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        if ty != record || class != INTERNET {
            continue;
        }
        addresses.push(match length {
            4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
            16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
            _ => return None,
        });
    }
    Some(Answer::Addresses(addresses))
}

/// The place behind the name at `at`. Where a pointer leads to is of no interest, so nothing can lead round in a circle.
fn behind_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length < 64 => at += 1 + usize::from(length),
            length if length >= 192 => return Some(at + 2),
            _ => return None,
        }
    }
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}
