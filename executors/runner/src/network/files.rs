//! The two files that say how names are found: hosts(5) and resolv.conf(5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// What is taken of resolv.conf(5), with that page's limits and defaults.
#[derive(Debug, PartialEq, Eq)]
pub struct Servers {
    pub addresses: Vec<IpAddr>,
    pub search: Vec<String>,
    /// A name with at least so many dots is tried as it is first.
    pub ndots: usize,
    /// How long one server is waited for.
    pub timeout: Duration,
    /// How often all of them are asked.
    pub attempts: u32,
    /// Ask by TCP only (`use-vc`).
    pub by_tcp: bool,
}

impl Servers {
    /// From the text of the file. What is not known is passed over, as everywhere.
    pub fn parse(text: &str) -> Servers {
        const MAX_SERVERS: usize = 3;
        let mut servers = Servers {
            addresses: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            by_tcp: false,
        };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    servers.addresses.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                // The last of these counts.
                Some("search") => servers.search = words.map(domain).collect(),
                Some("domain") => servers.search = words.take(1).map(domain).collect(),
                Some("options") => words.for_each(|option| servers.option(option)),
                _ => {}
            }
        }
        servers.addresses.truncate(MAX_SERVERS);
        if servers.addresses.is_empty() {
            servers.addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        servers
    }

    fn option(&mut self, option: &str) {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        match (name, value.parse::<u32>()) {
            ("ndots", Ok(n)) => self.ndots = n.min(15) as usize,
            ("timeout", Ok(n)) => self.timeout = Duration::from_secs(u64::from(n.clamp(1, 30))),
            ("attempts", Ok(n)) => self.attempts = n.clamp(1, 5),
            ("use-vc", _) => self.by_tcp = true,
            _ => {}
        }
    }

    /// The full names that a name may stand for, in the order in which they are tried.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let as_it_is = if name.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.insert(as_it_is, name.to_owned());
        names
    }
}

fn domain(word: &str) -> String {
    word.trim_end_matches('.').to_owned()
}

/// The addresses that hosts(5) has for a name; for `localhost` and what is below it the loopback's where the file is silent
/// (RFC 6761, 6.3).
pub fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        if words.any(|alias| alias.eq_ignore_ascii_case(name)) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() && (name == "localhost" || name.ends_with(".localhost")) {
        return vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    }
    addresses
}
