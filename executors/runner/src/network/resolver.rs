//! Names → addresses, by the container's own /etc/hosts and /etc/resolv.conf.
//!
//! The C library must not do it: it loads the modules that nsswitch.conf(5) names, from the image, into this static binary
//! (CVE-2019-14271 was that).

use std::fs::OpenOptions;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::dns::{self, Answer, Record};
use super::files::{Servers, hosts};

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The policy forbids to ask.
    Denied,
    /// Nothing has that name, or it has no address.
    Unknown,
    /// No server has answered, or none could.
    Unanswered,
}

/// The largest file that is read, in bytes: the image may have anything there.
const MAX_FILE: u64 = 1 << 20;

const DNS_PORT: u16 = 53;

/// The types of record that are asked for, in the order in which their addresses are given.
const RECORDS: [Record; 2] = [Record::A, Record::Aaaa];

/// The addresses of a name, IPv4 first.
pub(super) async fn resolve(name: &str) -> Result<Vec<IpAddr>, Failure> {
    let known = hosts(&read("/etc/hosts"), name);
    if !known.is_empty() {
        return Ok(known);
    }
    let servers = Servers::parse(&read("/etc/resolv.conf"));
    let mut failure = Failure::Unknown;
    for name in servers.candidates(name) {
        match ask(&servers, &name).await {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => {}
            // A server that answers some names and not others doesn't make the others unknown.
            Err(Failure::Unanswered) => failure = Failure::Unanswered,
            Err(_) => {}
        }
    }
    Err(failure)
}

/// The text of a file in the container; nothing where there is none.
fn read(path: &str) -> String {
    let mut text = Vec::new();
    // A fifo must not keep the guest waiting.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
    let _ = file.map(|file| file.take(MAX_FILE).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks one server after the other for a full name.
async fn ask(servers: &Servers, name: &str) -> Result<Vec<IpAddr>, Failure> {
    let questions = RECORDS.map(|record| dns::question(random(), name, record));
    let [Some(a), Some(aaaa)] = questions else { return Err(Failure::Unknown) };
    let questions = [a, aaaa];
    let mut answers = [None, None];
    for _ in 0..servers.attempts {
        for address in &servers.addresses {
            let server = SocketAddr::new(*address, DNS_PORT);
            let deadline = Instant::now() + servers.timeout;
            if !servers.by_tcp {
                // An error is as good as no answer: there may be other servers.
                let _ = timeout_at(deadline, by_udp(server, &questions, &mut answers)).await;
            }
            for (question, answer) in questions.iter().zip(&mut answers) {
                if servers.by_tcp && answer.is_none() || *answer == Some(Answer::Truncated) {
                    *answer = timeout_at(deadline, by_tcp(server, question)).await.ok().and_then(io::Result::ok);
                }
            }
            for answer in answers.iter_mut().filter(|answer| matches!(answer, Some(Answer::Failed))) {
                *answer = None;
            }
            if answers.iter().all(Option::is_some) || answers.contains(&Some(Answer::NoName)) {
                return Ok(addresses(answers));
            }
        }
    }
    if answers.iter().any(Option::is_some) { Ok(addresses(answers)) } else { Err(Failure::Unanswered) }
}

fn addresses(answers: [Option<Answer>; 2]) -> Vec<IpAddr> {
    answers
        .into_iter()
        .flat_map(|answer| match answer {
            Some(Answer::Addresses(addresses)) => addresses,
            _ => Vec::new(),
        })
        .collect()
}

/// Asks what has no answer yet, all at once. What arrives before a failure is kept.
async fn by_udp(server: SocketAddr, questions: &[Vec<u8>], answers: &mut [Option<Answer>]) -> io::Result<()> {
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    // The kernel picks a port at random, and lets nothing through that does not come from the server.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    for (question, _) in questions.iter().zip(&*answers).filter(|(_, answer)| answer.is_none()) {
        socket.send(question).await?;
    }
    let mut message = [0; 1500];
    while answers.iter().any(Option::is_none) {
        let length = socket.recv(&mut message).await?;
        for (question, answer) in questions.iter().zip(&mut *answers).filter(|(_, answer)| answer.is_none()) {
            *answer = dns::answer(question, &message[..length]);
        }
    }
    Ok(())
}

/// Asks one question (RFC 1035, 4.2.2: a length goes before each message).
async fn by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let mut message = (question.len() as u16).to_be_bytes().to_vec();
    message.extend(question);
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    dns::answer(question, &message).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// A number that nobody else can guess: the seed of a hash map, which the kernel made.
fn random() -> u16 {
    RandomState::new().build_hasher().finish() as u16
}
