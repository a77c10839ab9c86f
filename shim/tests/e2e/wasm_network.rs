//! What guests reach: addresses and names, by the policy of their container.
use crate::harness::command::Output;
use crate::harness::{Case, Kind, Test};
use crate::wasm_service::{connect, free};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub const CASES: &[Case] = &[
    Case::new("connections_by_policy", |test| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        let cases = [
            ("", true),
            ("pod", true),
            ("none", false),
            (&format!("127.0.0.1:{port}"), true),
            ("127.0.0.0/8:*", true),
            ("127.0.0.1:1 10.0.0.0/8:*", false),
            ("localhost:*", false),
        ];
        for (number, (policy, reached)) in cases.into_iter().enumerate() {
            let output = guest(test, number, policy, &[], &["connect", "127.0.0.1", &port])?;
            ensure!((output.code == 0) == reached, "{policy:?}: {output}");
            let output = run(test, number, policy, &[], &["/socket.wasm", "127.0.0.1", &port])?;
            ensure!((output.code == 0) == reached, "WASI 0.3, {policy:?}: {output}");
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("its_own_network_by_default", |test| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        test.run_image("wasm-cases", &["/network.wasm", "connect", "127.0.0.1", &port]).output()?.exits(1).map(drop)
    })
    .kinds(CASE),
    Case::new("a_list_is_for_going_out", |test| {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        for (number, (policy, bound)) in
            [("pod", true), ("0.0.0.0/0:*", false), ("none", false)].into_iter().enumerate()
        {
            let output = guest(test, number, policy, &[], &["bind", &port])?;
            ensure!((output.code == 0) == bound, "{policy:?}: {output}");
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("connections_are_accepted", |test| {
        let address = free()?;
        std::thread::scope(|scope| {
            let port = address.port().to_string();
            let guest = scope.spawn(move || guest(test, 0, "", &[], &["listen", &port]));
            drop(connect(address)?);
            guest.join().map_err(|_| anyhow!("the guest's thread panicked"))??.exits(0).map(drop)
        })
    })
    .kinds(CASE),
    Case::new("datagrams_by_policy", |test| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let port = socket.local_addr()?.port().to_string();
        let here = format!("127.0.0.1:{port}");
        let cases = [("", true), ("none", false), (here.as_str(), true), ("127.0.0.1:1", false)];
        for (number, (policy, reached)) in cases.into_iter().enumerate() {
            let text = format!("datagram {number}");
            let output = run(test, number, policy, &[], &["/socket.wasm", "127.0.0.1", &port, &text])?;
            ensure!((output.code == 0) == reached, "{policy:?}: {output}");
            if reached {
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer)?;
                // What was not to be sent would come before.
                ensure!(&buffer[..length] == text.as_bytes(), "{:?}", String::from_utf8_lossy(&buffer[..length]));
            }
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("names_come_from_the_containers_files", |test| {
        let server =
            NameServer::start("127.0.0.91", [("web.test", [10, 1, 2, 3]), ("db.apps.test", [10, 1, 2, 4])].to_vec())?;
        let hosts = file(test, "127.0.0.1 localhost\n10.9.8.7 printer Printer.home\n")?;
        let resolv = file(test, "nameserver 127.0.0.91\nsearch apps.test\noptions timeout:1 attempts:1\n")?;
        let mounts = [mount(&hosts, "/etc/hosts"), mount(&resolv, "/etc/resolv.conf")];
        let cases = [
            ("printer", "10.9.8.7", true),
            ("PRINTER.HOME.", "10.9.8.7", true),
            ("localhost", "127.0.0.1", true),
            ("web.test", "10.1.2.3", true),
            ("db", "10.1.2.4", true),
            ("192.0.2.9", "192.0.2.9", true),
            ("nobody.test", "0.0.0.0", false),
        ];
        for (number, (name, address, found)) in cases.into_iter().enumerate() {
            let output = guest(test, number, "", &mounts, &["resolve", name, address])?;
            ensure!((output.code == 0) == found, "{name}: {output}");
        }
        server.stop()
    })
    .kinds(CASE),
    Case::new("names_by_policy", |test| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        let mounts = [mount(&file(test, "127.0.0.1 web.test\n")?, "/etc/hosts")];
        let list = format!("web.test:{port}");
        let cases: [(&str, [&str; 3], bool); 5] = [
            (&list, ["named", "web.test", &port], true),
            // The address alone is not on the list.
            (&list, ["connect", "127.0.0.1", &port], false),
            ("web.test:1", ["named", "web.test", &port], false),
            ("other.test:*", ["resolve", "web.test", "127.0.0.1"], false),
            ("none", ["resolve", "web.test", "127.0.0.1"], false),
        ];
        for (number, (policy, arguments, reached)) in cases.into_iter().enumerate() {
            let output = guest(test, number, policy, &mounts, &arguments)?;
            ensure!((output.code == 0) == reached, "{policy:?} {arguments:?}: {output}");
        }
        Ok(())
    })
    .kinds(CASE),
];

const CASE: &[Kind] = &[Kind::Core];

/// Runs the guest of WASI 0.2 that uses the network.
fn guest(test: &Test, number: usize, policy: &str, mounts: &[Value], arguments: &[&str]) -> Result<Output> {
    run(test, number, policy, mounts, &[&["/network.wasm"], arguments].concat())
}

/// Runs a program of the image `wasm-cases` in the test's own network. (With `--net-host` `ctr` mounts the host's files over ours.)
pub fn run(test: &Test, number: usize, policy: &str, mounts: &[Value], arguments: &[&str]) -> Result<Output> {
    let mut spec = test.spec(&[])?.set("/process/args", json!(arguments))?;
    spec = spec.set("/root/path", json!(test.containerd.rootfs("wasm-cases")))?;
    let namespaces = spec.value["linux"]["namespaces"].as_array_mut().context("the spec has namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    if !policy.is_empty() {
        spec = spec.set("/annotations", json!({"io.containerd.hybrid.wasm.network": policy}))?;
    }
    for mount in mounts {
        spec = spec.mount(mount.clone())?;
    }
    spec.run()?.id(&test.other(&number.to_string())).output()
}

pub fn file(test: &Test, text: &str) -> Result<String> {
    let path = test.containerd.fresh_path("file").display().to_string();
    std::fs::write(&path, text).with_context(|| format!("writing {path}"))?;
    Ok(path)
}

pub fn mount(source: &str, destination: &str) -> Value {
    json!({"type": "bind", "source": source, "destination": destination, "options": ["rbind", "ro"]})
}

/// A server of DNS that knows some addresses of version 4.
struct NameServer {
    socket: Arc<UdpSocket>,
    done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl NameServer {
    fn start(address: &str, names: Vec<(&'static str, [u8; 4])>) -> Result<NameServer> {
        let socket = Arc::new(UdpSocket::bind((address, 53)).context("binding the name server's port")?);
        let done = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, done) = (socket.clone(), done.clone());
            move || {
                let mut message = [0; 512];
                loop {
                    let (length, client) = socket.recv_from(&mut message)?;
                    if done.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    socket.send_to(&answer(&message[..length], &names), client)?;
                }
            }
        });
        Ok(NameServer { socket, done, thread })
    }

    fn stop(self) -> Result<()> {
        self.done.store(true, Ordering::SeqCst);
        self.socket.send_to(b"end", self.socket.local_addr()?)?;
        self.thread.join().map_err(|_| anyhow!("the name server panicked"))?
    }
}

/// The answer to a question (RFC 1035, section 4): an address, none of the type, or "no such name".
fn answer(question: &[u8], names: &[(&str, [u8; 4])]) -> Vec<u8> {
    let (mut name, mut at) = (String::new(), 12);
    while question[at] != 0 {
        let length = usize::from(question[at]);
        name += &String::from_utf8_lossy(&question[at + 1..at + 1 + length]);
        at += 1 + length;
        name += if question[at] == 0 { "" } else { "." };
    }
    let known = names.iter().find(|(known, _)| *known == name);
    let mut message = question.to_vec();
    message[2..4].copy_from_slice(if known.is_some() { b"\x81\x80" } else { b"\x81\x83" });
    if let (Some((_, address)), 1) = (known, question[at + 2]) {
        message[7] = 1;
        message.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04");
        message.extend(address);
    }
    message
}
