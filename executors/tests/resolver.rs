//! How the runner finds names: the files that say so, and the messages of DNS.

use std::net::IpAddr;
use std::time::Duration;

use runner::network::dns::{Answer, Record, answer, question};
use runner::network::files::{Servers, hosts};

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn hosts_come_from_the_file() {
    let text = "127.0.0.1 localhost\n# 9.9.9.9 web\n10.0.0.7\tweb web.example # db\nfe80::1%eth0 web\nfd00::7 WEB\nnonsense web\n";
    assert_eq!(hosts(text, "web"), ips(&["10.0.0.7", "fd00::7"]));
    assert_eq!(hosts(text, "web.example."), ips(&["10.0.0.7"]));
    assert_eq!(hosts(text, "db"), ips(&[]));
    assert_eq!(hosts(text, "localhost"), ips(&["127.0.0.1"]));
    assert_eq!(hosts("", "a.localhost"), ips(&["127.0.0.1", "::1"]));
}

#[test]
fn resolv_conf_is_read_with_its_limits() {
    let text = "; c\nnameserver 10.96.0.10\nnameserver x\nnameserver fd00::53 # c\nsearch a.\nsearch ns.svc.cluster.local svc.cluster.local.\n\
                options ndots:5 timeout:99 attempts:3 use-vc rotate\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n";
    let servers = Servers::parse(text);
    assert_eq!(servers.addresses, ips(&["10.96.0.10", "fd00::53", "1.1.1.1"]));
    assert_eq!((servers.ndots, servers.attempts, servers.by_tcp), (5, 3, true));
    assert_eq!(servers.timeout, Duration::from_secs(30));
    assert_eq!(servers.candidates("db"), ["db.ns.svc.cluster.local", "db.svc.cluster.local", "db"]);
    assert_eq!(servers.candidates("db."), ["db"]);
    let plain = Servers::parse("domain example\n");
    assert_eq!(plain.addresses, ips(&["127.0.0.1"]));
    assert_eq!((plain.ndots, plain.attempts, plain.timeout), (1, 2, Duration::from_secs(5)));
    assert_eq!(plain.candidates("a.b"), ["a.b", "a.b.example"]);
}

/// The answer to a question, with these flags and records behind it.
fn reply(question: &[u8], flags: u16, records: &[&[u8]]) -> Vec<u8> {
    let mut message = question.to_vec();
    message[2..4].copy_from_slice(&flags.to_be_bytes());
    message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    records.iter().for_each(|record| message.extend(*record));
    message
}

const OK: u16 = 0x8180;

#[test]
fn questions_have_labels() {
    let message = question(0x1234, "ab.c", Record::Aaaa).unwrap();
    assert_eq!(message, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02ab\x01c\0\0\x1c\0\x01");
    assert_eq!(question(1, "a.", Record::A), question(1, "a", Record::A));
    for name in ["", "a..b", ".a", &"x".repeat(64), &"abc.".repeat(64)] {
        assert_eq!(question(1, name, Record::A), None, "{name}");
    }
}

#[test]
fn answers_have_the_addresses_of_the_type() {
    let asked = question(7, "a.example", Record::A).unwrap();
    let alias = b"\xc0\x0c\0\x05\0\x01\0\0\0\x09\0\x04\x01b\xc0\x0e";
    let first = b"\x01b\xc0\x0e\0\x01\0\x01\0\0\0\x09\0\x04\x0a\0\0\x01";
    let second = b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\x0a\0\0\x02";
    let other = b"\xc0\x0c\0\x1c\0\x01\0\0\0\x09\0\x10fedcba9876543210";
    let message = reply(&asked, OK, &[alias, first, other, second]);
    assert_eq!(answer(&asked, &message), Some(Answer::Addresses(ips(&["10.0.0.1", "10.0.0.2"]))));
    assert_eq!(answer(&asked, &reply(&asked, OK, &[])), Some(Answer::Addresses(vec![])));
    assert_eq!(answer(&asked, &reply(&asked, 0x8183, &[])), Some(Answer::NoName));
    assert_eq!(answer(&asked, &reply(&asked, 0x8182, &[])), Some(Answer::Failed));
    assert_eq!(answer(&asked, &reply(&asked, 0x8380, &[])), Some(Answer::Truncated));
    // An error of a server that repeats nothing.
    assert_eq!(answer(&asked, b"\0\x07\x81\x85\0\0\0\0\0\0\0\0"), Some(Answer::Failed));
}

#[test]
fn what_is_no_answer_to_the_question_is_passed_over() {
    let asked = question(7, "a.example", Record::A).unwrap();
    for other in [
        question(8, "a.example", Record::A),
        question(7, "b.example", Record::A),
        question(7, "a.example", Record::Aaaa),
    ] {
        assert_eq!(answer(&asked, &reply(&other.unwrap(), OK, &[])), None);
    }
    // The question itself.
    assert_eq!(answer(&asked, &asked), None);
}

#[test]
fn no_message_makes_it_stumble() {
    let asked = question(7, "a.example", Record::A).unwrap();
    let record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\x0a\0\0\x01";
    let whole = reply(&asked, OK, &[record, record]);
    for length in 0..whole.len() {
        let cut = answer(&asked, &whole[..length]);
        assert!(matches!(cut, None | Some(Answer::Failed)), "{length}: {cut:?}");
    }
    for place in 0..whole.len() {
        for byte in [0, 0x3f, 0x7f, 0xc0, 0xff] {
            let mut changed = whole.clone();
            changed[place] = byte;
            let _ = answer(&asked, &changed);
        }
    }
}
