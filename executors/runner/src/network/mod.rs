//! What a guest may reach: the [`Network`] of its settings, asked at each use of an address or a name.
//!
//! The bounds are those of the container's network namespace in any case; this narrows them.

pub mod dns;
pub mod files;
pub(crate) mod lookup;
mod resolver;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

pub(crate) use self::resolver::Failure;
use crate::settings::{Destination, Host, Network};

/// The policy of one runner.
pub(crate) struct Policy {
    network: Network,
    /// The addresses that were found for names which are allowed, with the rules' places in the list.
    found: Mutex<HashMap<IpAddr, Vec<usize>>>,
}

impl Policy {
    pub fn new(network: Network) -> Policy {
        Policy { network, found: Mutex::default() }
    }

    /// Grants what the policy does not rule out as a whole. The rest is asked for with [`Policy::permits`].
    pub fn grant(self: &std::sync::Arc<Self>, context: &mut WasiCtxBuilder) {
        // Names are looked up by `lookup`, never by Wasmtime's own way, which is the C library's.
        context.allow_ip_name_lookup(false);
        let any = self.network != Network::None;
        context.allow_tcp(any).allow_udp(any);
        if any {
            let policy = self.clone();
            context.socket_addr_check(move |address, usage| {
                let permitted = policy.permits(address, usage);
                Box::pin(async move { permitted })
            });
        }
    }

    /// Whether a socket may be used so.
    fn permits(&self, address: SocketAddr, usage: SocketAddrUse) -> bool {
        match &self.network {
            Network::None => false,
            Network::Pod => true,
            Network::Only(_) => match usage {
                // Of any address that is free: what connecting and sending do by themselves.
                SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => address.port() == 0,
                SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
                SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => self.reaches(address),
            },
        }
    }

    /// Whether the guest may send there.
    pub fn reaches(&self, address: SocketAddr) -> bool {
        let list = match &self.network {
            Network::None => return false,
            Network::Pod => return true,
            Network::Only(list) => list,
        };
        let ip = address.ip().to_canonical();
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let named = found.get(&ip).map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().any(|(place, rule)| {
            rule.port.is_none_or(|port| port == address.port())
                && match &rule.host {
                    Host::Addresses(first, bits) => same_bits(*first, ip, *bits),
                    Host::Name(_) => named.contains(&place),
                }
        })
    }

    /// The addresses of a name, in lower case and without the last dot. They may be reached afterwards, where the name may.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let rules: Vec<usize> = match &self.network {
            Network::None => return Err(Failure::Denied),
            Network::Pod => return resolver::resolve(name).await,
            Network::Only(list) => {
                let names = |rule: &Destination| matches!(&rule.host, Host::Name(allowed) if allowed == name);
                list.iter().enumerate().filter(|(_, rule)| names(rule)).map(|(place, _)| place).collect()
            }
        };
        if rules.is_empty() {
            return Err(Failure::Denied);
        }
        let addresses = resolver::resolve(name).await?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for address in &addresses {
            let places = found.entry(address.to_canonical()).or_default();
            places.extend(rules.iter().filter(|place| !places.contains(place)).copied().collect::<Vec<_>>());
        }
        Ok(addresses)
    }
}

/// Whether the first `bits` of two addresses of one family are the same.
fn same_bits(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let differ = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    differ >= u32::from(bits)
}
