//! The little of rtnetlink(7) that moving network devices takes: messages in and out of one socket.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// A message from the kernel: its type and what follows its header.
pub(super) struct Message {
    pub kind: u16,
    pub payload: Vec<u8>,
}

impl Message {
    /// The number at an offset.
    pub fn u32_at(&self, offset: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.payload.get(offset..offset + 4)?.try_into().ok()?))
    }

    /// The attributes behind a header of `offset` bytes: type and value.
    pub fn attributes(&self, offset: usize) -> Vec<(u16, &[u8])> {
        let mut rest = self.payload.get(offset..).unwrap_or_default();
        let mut attributes = Vec::new();
        while let Some((length, kind)) = rest
            .first_chunk::<4>()
            .map(|[a, b, c, d]| (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d])))
        {
            let Some(value) = rest.get(4..length) else { break };
            attributes.push((kind, value));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        attributes
    }
}

/// An attribute as it is sent: length, type, value, padding (`struct rtattr`).
pub(super) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((4 + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// A socket to the network namespace that the thread was in when it was made.
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub fn new() -> rustix::io::Result<Socket> {
        // NETLINK_ROUTE is number 0.
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).map(Socket)
    }

    /// Sends a request of a type and returns what comes before the kernel says that it is done. `flags` are NLM_F_* beside
    /// NLM_F_REQUEST and, where there is no dump, NLM_F_ACK.
    pub fn request(&self, kind: u16, flags: i32, payload: &[u8]) -> rustix::io::Result<Vec<Message>> {
        /// `struct nlmsghdr`: length, type, flags, sequence number, port.
        const HEADER: usize = 16;
        let is_dump = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let flags = flags | libc::NLM_F_REQUEST | if is_dump { 0 } else { libc::NLM_F_ACK };
        let mut request = Vec::with_capacity(HEADER + payload.len());
        request.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((flags as u16).to_ne_bytes());
        request.extend([0; 8]);
        request.extend(payload);
        send(&self.0, &request, SendFlags::empty())?;
        // As much as the kernel sends at once.
        let mut buffer = vec![0; 32768];
        let mut messages = Vec::new();
        loop {
            let length = match recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?.0,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((message, header)) = rest.first_chunk::<HEADER>().and_then(|header| {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                Some((rest.get(..length)?.get(HEADER..)?, header))
            }) {
                let message = Message { kind: u16::from_ne_bytes([header[4], header[5]]), payload: message.to_vec() };
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(messages),
                    libc::NLMSG_ERROR => match message.u32_at(0).map_or(0, |errno| errno as i32) {
                        0 => return Ok(messages),
                        errno => return Err(Errno::from_raw_os_error(-errno)),
                    },
                    _ => {}
                }
                rest = rest.get((HEADER + message.payload.len()).next_multiple_of(4)..).unwrap_or_default();
                messages.push(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut payload = vec![7; 8];
        attribute(&mut payload, 3, b"eth0\0");
        attribute(&mut payload, 28, &5u32.to_ne_bytes());
        let message = Message { kind: 16, payload };
        assert_eq!(message.attributes(8), [(3, &b"eth0\0"[..]), (28, &5u32.to_ne_bytes()[..])]);
        let cut = Message { kind: 16, payload: message.payload[..message.payload.len() - 2].to_vec() };
        assert_eq!(cut.attributes(8).len(), 1, "what is cut off is not read");
    }

    #[test]
    fn the_kernel_answers() {
        let socket = Socket::new().unwrap();
        let links = socket.request(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]).unwrap();
        assert!(links.iter().any(|link| link.attributes(16).contains(&(libc::IFLA_IFNAME, b"lo\0"))));
        let mut payload = vec![0; 16];
        attribute(&mut payload, libc::IFLA_IFNAME, b"no-such-dev\0");
        assert_eq!(socket.request(libc::RTM_GETLINK, 0, &payload).err(), Some(Errno::NODEV));
    }
}
