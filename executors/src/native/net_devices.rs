//! Network devices of the host that are moved to the container's network namespace, as runc does it: set down, moved and
//! renamed in one step, its permanent global addresses given back to it, set up.
//!
//! They stay there until the namespace ends. Then the kernel gives hardware back to the host, under the name that it has by
//! then, and removes what is virtual.
//!
//! Source: OCI runtime spec 1.3, config-linux.md "Network Devices"; rtnetlink(7).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use super::launch::BirthNamespaces;
use super::namespaces::open_namespace;
use super::netlink::{Message, Socket, attribute};
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};

/// The header of messages about addresses, `struct ifaddrmsg`, in bytes.
const ADDRESS_HEADER: usize = 8;

/// What is to be moved, and where to.
pub(crate) struct NetDevices {
    /// Names on the host and in the container, sorted.
    devices: Vec<(String, String)>,
    /// None: to the new network namespace of the process.
    namespace: Option<OwnedFd>,
}

/// Judges the spec's list without looking at the host.
pub(crate) fn check(linux: &Linux) -> Result<()> {
    let devices = linux.net_devices().iter().flatten();
    let has_namespace = linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::Network);
    let mut names = Vec::new();
    for (name, device) in devices {
        if !has_namespace {
            bail!(InvalidArgument, "linux.netDevices: there is no network namespace to move {name:?} to");
        }
        let inside = device.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(name);
        if let Some(name) = [name, inside].into_iter().find(|name| !is_name(name)) {
            bail!(InvalidArgument, "linux.netDevices: {name:?} is not a name of a network device");
        }
        if names.contains(&inside) {
            bail!(InvalidArgument, "linux.netDevices: {inside:?} is there twice");
        }
        names.push(inside);
    }
    Ok(())
}

/// What the kernel takes as the name of a network device (its dev_valid_name).
fn is_name(name: &str) -> bool {
    let length = 1..libc::IFNAMSIZ;
    let is_bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace() || c == '\x0b';
    length.contains(&name.len()) && name != "." && name != ".." && !name.contains(is_bad)
}

impl NetDevices {
    /// Those of a bundle, if it has any.
    pub fn of(bundle: &Bundle) -> Result<Option<NetDevices>> {
        let devices = bundle.linux().net_devices().iter().flatten().map(|(name, device)| {
            let inside = device.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(name);
            (name.clone(), inside.to_owned())
        });
        let mut devices: Vec<_> = devices.collect();
        if devices.is_empty() {
            return Ok(None);
        }
        devices.sort_unstable();
        let path = bundle.namespace(LinuxNamespaceType::Network).flatten();
        let namespace = path.map(|path| open_namespace(path, "network")).transpose()?;
        Ok(Some(NetDevices { devices, namespace }))
    }

    /// Moves them, to the namespace of that process if there is no other.
    ///
    /// # Errors
    /// InvalidArgument when the host has no such device, or the container has one of that name. What was moved before goes
    /// the way of the namespace.
    pub fn move_to(&self, pid: u32) -> Result<()> {
        let path = format!("/proc/{pid}/ns/net");
        let new = match &self.namespace {
            Some(_) => None,
            None => Some(File::open(&path).map(OwnedFd::from).or_kind(Kind::Internal, || format!("open {path}"))?),
        };
        let Some(namespace) = self.namespace.as_ref().or(new.as_ref()) else { return Ok(()) };
        let here = Socket::new().or_kind(Kind::Unavailable, || "linux.netDevices: open a netlink socket")?;
        let there = socket_in(namespace.as_fd())
            .or_kind(Kind::Unavailable, || "linux.netDevices: open a netlink socket in the container")?;
        for (name, inside) in &self.devices {
            move_one(&here, &there, name, inside, namespace.as_fd()).or_kind(Kind::InvalidArgument, || {
                format!("linux.netDevices: move {name} to the container's network namespace as {inside}")
            })?;
        }
        Ok(())
    }
}

fn socket_in(namespace: BorrowedFd<'_>) -> rustix::io::Result<Socket> {
    let _entered = BirthNamespaces::enter(&[(namespace, ThreadNameSpaceType::NETWORK)])?;
    Socket::new()
}

fn move_one(
    here: &Socket,
    there: &Socket,
    name: &str,
    inside: &str,
    namespace: BorrowedFd<'_>,
) -> rustix::io::Result<()> {
    let index = index_of(here, name)?;
    // The kernel would move it first and then find that it can't have the name.
    match index_of(there, inside) {
        Err(Errno::NODEV) => {}
        found => return found.and(Err(Errno::EXIST)),
    }
    // Of a device that is set down the kernel takes the addresses of IPv6 away.
    let addresses = addresses(here, index)?;
    set_up(here, index, false)?;
    let mut message = link(index, 0, 0);
    attribute(&mut message, libc::IFLA_IFNAME, &terminated(inside));
    attribute(&mut message, libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    here.request(libc::RTM_NEWLINK, 0, &message)?;
    let index = index_of(there, inside)?;
    for address in addresses {
        there.request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &address.on(index))?;
    }
    set_up(there, index, true)
}

/// `struct ifinfomsg`: family, type, index, flags, and which of them to change.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [0, index, flags, change].iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn index_of(socket: &Socket, name: &str) -> rustix::io::Result<u32> {
    let mut message = link(0, 0, 0);
    attribute(&mut message, libc::IFLA_IFNAME, &terminated(name));
    let links = socket.request(libc::RTM_GETLINK, 0, &message)?;
    links.first().and_then(|link| link.u32_at(4)).ok_or(Errno::NODEV)
}

fn set_up(socket: &Socket, index: u32, up: bool) -> rustix::io::Result<()> {
    let bit = libc::IFF_UP as u32;
    socket.request(libc::RTM_NEWLINK, 0, &link(index, if up { bit } else { 0 }, bit)).map(drop)
}

/// An address to be given to a device: `struct ifaddrmsg` without the index, and attributes.
#[derive(Debug, PartialEq)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<u8>,
}

impl Address {
    /// Only what somebody has configured for the world outside: others belong to the host's network (as with runc).
    fn parse(message: &Message, index: u32) -> Option<Address> {
        let [family, prefix, flags, scope] = *message.payload.first_chunk()?;
        let attributes = message.attributes(ADDRESS_HEADER);
        let long = attributes.iter().find(|(kind, _)| *kind == libc::IFA_FLAGS);
        let long = long.and_then(|(_, value)| Some(u32::from_ne_bytes((*value).try_into().ok()?)));
        let is_permanent = long.unwrap_or(u32::from(flags)) & libc::IFA_F_PERMANENT != 0;
        if message.kind != libc::RTM_NEWADDR
            || message.u32_at(4) != Some(index)
            || !is_permanent
            || scope != libc::RT_SCOPE_UNIVERSE
        {
            return None;
        }
        let mut kept = Vec::new();
        for (kind, value) in attributes {
            if [libc::IFA_LOCAL, libc::IFA_ADDRESS, libc::IFA_BROADCAST].contains(&kind) {
                attribute(&mut kept, kind, value);
            }
        }
        Some(Address { family, prefix, attributes: kept })
    }

    /// The message that gives it to a device.
    fn on(&self, index: u32) -> Vec<u8> {
        let head = [self.family, self.prefix, 0, libc::RT_SCOPE_UNIVERSE];
        head.into_iter().chain(index.to_ne_bytes()).chain(self.attributes.iter().copied()).collect()
    }
}

fn addresses(socket: &Socket, index: u32) -> rustix::io::Result<Vec<Address>> {
    let all = socket.request(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; ADDRESS_HEADER])?;
    Ok(all.iter().filter_map(|message| Address::parse(message, index)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernel_s() {
        for name in ["eth0", "a.b-c", "fifteen-letters"] {
            assert!(is_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters-"] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn addresses_of_the_world_outside_are_kept() {
        let message = |flags: u8, scope: u8, index: u32| {
            let mut payload = vec![2, 24, flags, scope];
            payload.extend(index.to_ne_bytes());
            attribute(&mut payload, libc::IFA_LOCAL, &[10, 0, 0, 1]);
            attribute(&mut payload, libc::IFA_LABEL, b"eth0\0");
            Message { kind: libc::RTM_NEWADDR, payload }
        };
        let address = Address::parse(&message(0x80, 0, 7), 7).unwrap();
        let mut expected = vec![2, 24, 0, 0, 9, 0, 0, 0];
        attribute(&mut expected, libc::IFA_LOCAL, &[10, 0, 0, 1]);
        assert_eq!(address.on(9), expected);
        for (flags, scope, index) in [(0, 0, 7), (0x80, 253, 7), (0x80, 0, 8)] {
            assert_eq!(Address::parse(&message(flags, scope, index), 7), None);
        }
    }
}
