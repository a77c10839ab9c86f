//! The shim's binary and its task service, called as containerd calls them.
use crate::harness::direct::{Direct, Server, refused};
use crate::harness::leaks::Process;
use crate::harness::{Case, Kind, Runtime, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, DeleteRequest, Empty, KillRequest, PidsRequest, PidsResponse,
    StartRequest, StateRequest, Status, WaitRequest,
};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("life", life).all(),
    Case::new("life_by_task_v3", |test| {
        let direct = test.direct()?.config(&test.spec(&["exit", "5"])?)?;
        let server = direct.start()?.again(3)?;
        rpc(server.create(), "Create")?;
        rpc(server.start(), "Start")?;
        ensure!(rpc(server.wait(), "Wait")?.exit_status == test.kind.code(5) as u32, "exit status");
        rpc(server.delete(), "Delete")?;
        server.shutdown()?;
        direct.remove()
    })
    .all()
    .hybrid_only(),
    Case::new("created_task_is_deleted", |test| {
        let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
        let server = direct.start()?;
        let pid = rpc(server.create(), "Create")?.pid;
        rpc(server.delete(), "Delete")?;
        ensure!(Process::of(pid).is_none(), "init still runs");
        server.shutdown()?;
        direct.remove()
    })
    .kinds(Kind::ALL)
    .hybrid_only(), // runc's answers with an error while init has not been reaped
    Case::new("created_task_is_killed", |test| {
        let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
        let server = direct.start()?;
        rpc(server.create(), "Create")?;
        rpc(server.kill(9), "Kill")?;
        ensure!(rpc(server.wait(), "Wait")?.exit_status == 137, "exit status");
        rpc(server.delete(), "Delete")?;
        server.shutdown()?;
        direct.remove()
    })
    .all(),
    Case::new("second_create", |test| {
        let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
        let server = direct.start()?;
        rpc(server.create(), "Create")?;
        let words = refused(server.create(), Code::ALREADY_EXISTS)?;
        ensure!(words.contains(&test.id), "{words}");
        ensure!(rpc(server.state(), "State")?.status() == Status::CREATED, "the first is no longer there");
        rpc(server.kill(9), "Kill")?;
        rpc(server.wait(), "Wait")?;
        rpc(server.delete(), "Delete")?;
        server.shutdown()?;
        direct.remove()
    })
    .hybrid_only(), // runc's fails on the state folder of its own
    Case::new("second_start", |test| {
        let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
        let server = direct.start()?;
        rpc(server.create(), "Create")?;
        rpc(server.start(), "Start")?;
        ensure!(server.start().is_err(), "started twice");
        rpc(server.kill(9), "Kill")?;
        ensure!(rpc(server.wait(), "Wait")?.exit_status == 137, "exit status");
        rpc(server.delete(), "Delete")?;
        server.shutdown()?;
        direct.remove()
    })
    .all(),
    Case::new("unknown_id", unknown_id),
    Case::new("connect_and_pids", connect_and_pids).all(),
    Case::new("shutdown_waits_for_the_last_task", |test| {
        let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
        let server = direct.start()?;
        rpc(server.create(), "Create")?;
        rpc(server.start(), "Start")?;
        server.shutdown()?;
        ensure!(rpc(server.state(), "State")?.status() == Status::RUNNING, "the task no longer runs");
        end(&server)?;
        direct.remove()
    }),
    Case::new("socket", socket),
    Case::new("stale_socket_is_replaced", stale_socket),
    Case::new("live_socket_is_used", live_socket),
    Case::new("answers_of_start", answers).hybrid_only(),
    Case::new("bootstrap_parameters", bootstrap).hybrid_only(),
    Case::new("delete_after_the_server_died", delete_binary).all(),
    Case::new("version", |test| {
        let output = test.direct()?.command("-v").output().context("running -v")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && text.contains("Version:"), "{text}");
        Ok(())
    }),
];

/// The answer, or an error that says which call it was.
fn rpc<T>(result: ttrpc::Result<T>, what: &str) -> Result<T> {
    result.with_context(|| what.to_owned())
}

/// Kills and deletes a running task and ends its shim.
fn end(server: &Server) -> Result<()> {
    rpc(server.kill(9), "Kill")?;
    rpc(server.wait(), "Wait")?;
    rpc(server.delete(), "Delete")?;
    server.shutdown()
}

fn life(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["say", "hello", ""])?)?;
    let server = direct.start()?;
    let created = rpc(server.create(), "Create")?;
    let state = rpc(server.state(), "State")?;
    ensure!(created.pid > 0 && state.pid == created.pid, "pid {} and {}", created.pid, state.pid);
    ensure!(state.status() == Status::CREATED && state.bundle == direct.bundle.display().to_string(), "{state:?}");
    ensure!(server.stdout()?.is_empty(), "the program ran before Start");
    let init = fs::read_to_string(direct.bundle.join("init.pid")).context("reading init.pid")?;
    ensure!(init.trim() == created.pid.to_string(), "init.pid holds {init:?}");

    // Wait is asked before the start and answered after the end.
    let waiting = server.again(if server_version(&server) == 3 { 3 } else { 2 })?;
    let waited = std::thread::scope(|scope| {
        let waited = scope.spawn(|| waiting.wait());
        let started = rpc(server.start(), "Start")?;
        ensure!(started.pid == created.pid, "Start answers pid {}", started.pid);
        rpc(waited.join().expect("Wait does not panic"), "Wait")
    })?;
    ensure!(waited.exit_status == 0 && waited.exited_at.seconds > 0, "{waited:?}");
    ensure!(server.stdout()? == "hello", "stdout holds {:?}", server.stdout()?);

    let state = rpc(server.state(), "State")?;
    ensure!(state.status() == Status::STOPPED && state.exited_at == waited.exited_at, "{state:?}");
    let again = rpc(server.wait(), "Wait after the end")?;
    ensure!(again.exit_status == 0 && again.exited_at == waited.exited_at, "{again:?}");
    refused(server.kill(9), Code::NOT_FOUND)?;

    let deleted = rpc(server.delete(), "Delete")?;
    ensure!(deleted.pid == created.pid && deleted.exit_status == 0, "{deleted:?}");
    ensure!(deleted.exited_at == waited.exited_at, "{deleted:?}");
    refused(server.delete(), Code::NOT_FOUND)?;
    refused(server.state(), Code::NOT_FOUND)?;
    server.shutdown()?;
    direct.remove()
}

fn server_version(server: &Server) -> i64 {
    if server.service_name().contains(".v3.") { 3 } else { 2 }
}

fn unknown_id(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
    let server = direct.start()?;
    let id = || "nobody".to_owned();
    let refuse = |method: &str, result: ttrpc::Result<Empty>| {
        refused(result, Code::NOT_FOUND).with_context(|| method.to_owned())
    };
    // The answers' fields do not matter: each of them decodes as an empty message too.
    refuse("State", server.call("State", &StateRequest { id: id(), ..Default::default() }))?;
    refuse("Start", server.call("Start", &StartRequest { id: id(), ..Default::default() }))?;
    refuse("Kill", server.call("Kill", &KillRequest { id: id(), signal: 9, ..Default::default() }))?;
    refuse("Wait", server.call("Wait", &WaitRequest { id: id(), ..Default::default() }))?;
    refuse("Delete", server.call("Delete", &DeleteRequest { id: id(), ..Default::default() }))?;
    refuse("Pids", server.call("Pids", &PidsRequest { id: id(), ..Default::default() }))?;
    refuse("CloseIO", server.call("CloseIO", &CloseIORequest { id: id(), stdin: true, ..Default::default() }))?;
    let connected: ConnectResponse =
        rpc(server.call("Connect", &ConnectRequest { id: id(), ..Default::default() }), "Connect")?;
    ensure!(connected.shim_pid > 0 && connected.task_pid == 0, "{connected:?}");
    server.shutdown()?;
    direct.remove()
}

fn connect_and_pids(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
    let server = direct.start()?;
    let created = rpc(server.create(), "Create")?;
    let request = ConnectRequest { id: test.id.clone(), ..Default::default() };
    let connected: ConnectResponse = rpc(server.call("Connect", &request), "Connect")?;
    ensure!(connected.task_pid == created.pid, "{connected:?}");
    let init = Process::of(created.pid).context("init has ended")?;
    ensure!(init.parent == connected.shim_pid, "init's parent is {}, not the shim: {connected:?}", init.parent);
    // In each state: containerd asks for them after a restart, and deletes a shim that cannot say.
    let request = PidsRequest { id: test.id.clone(), ..Default::default() };
    let pids: PidsResponse = rpc(server.call("Pids", &request), "Pids")?;
    ensure!(pids.processes.iter().any(|process| process.pid == created.pid), "{pids:?}");
    rpc(server.start(), "Start")?;
    let pids: PidsResponse = rpc(server.call("Pids", &request), "Pids")?;
    ensure!(pids.processes.iter().any(|process| process.pid == created.pid), "{pids:?}");
    end(&server)?;
    direct.remove()
}

fn socket(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
    let server = direct.start()?;
    let path = server.socket().to_owned();
    let meta = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
    ensure!(meta.file_type().is_socket(), "{} is no socket", path.display());
    ensure!(meta.permissions().mode() & 0o777 == 0o600, "mode {:o}", meta.permissions().mode());
    let folder = path.parent().context("a socket lies in a folder")?;
    let mode = fs::metadata(folder).context("looking at the socket's folder")?.permissions().mode();
    ensure!(mode & 0o077 == 0o011 || mode & 0o077 == 0, "others may look into the folder: {mode:o}");
    // runc's shim of containerd 2 leaves the file to containerd.
    if test.runtime() == Runtime::Hybrid {
        let address = fs::read_to_string(direct.bundle.join("address")).context("reading the file address")?;
        ensure!(address == server.address, "address holds {address}");
    }
    server.shutdown()?;
    if test.runtime() == Runtime::Hybrid {
        gone(&path)?;
    }
    direct.remove()
}

/// The shim ends after it has answered Shutdown: the end of the connection is what says so.
fn gone(socket: &Path) -> Result<()> {
    for process in Process::all()? {
        process.wait_for_shim()?;
        if !socket.exists() {
            return Ok(());
        }
    }
    ensure!(!socket.exists(), "left behind: {}", socket.display());
    Ok(())
}

fn stale_socket(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
    let first = direct.start()?;
    let connected: ConnectResponse = rpc(first.call("Connect", &ConnectRequest::new()), "Connect")?;
    Process::of(connected.shim_pid).context("the shim has ended")?.kill()?;
    ensure!(first.socket().exists(), "the kernel removes no socket");
    let second = direct.start().context("starting beside the stale socket")?;
    ensure!(second.address == first.address, "{} and {}", first.address, second.address);
    rpc(second.create(), "Create")?;
    rpc(second.start(), "Start")?;
    ensure!(rpc(second.wait(), "Wait")?.exit_status == 0, "exit status");
    rpc(second.delete(), "Delete")?;
    second.shutdown()?;
    direct.remove()
}

fn live_socket(test: &Test) -> Result<()> {
    let annotations = json!({"io.containerd.runc.v2.group": test.other("group")});
    let spec = test.spec(&["spin"])?.set("/annotations", annotations)?;
    let direct = test.direct()?.config(&spec)?;
    let server = direct.start()?;
    rpc(server.create(), "Create")?;
    let neighbour = Direct::new(test.containerd, test.runtime(), &test.other("neighbour"))?.config(&spec)?;
    let other = neighbour.start()?;
    ensure!(other.address == server.address, "{} and {}", server.address, other.address);
    ensure!(rpc(server.state(), "State")?.status() == Status::CREATED, "the first was disturbed");
    rpc(server.kill(9), "Kill")?;
    rpc(server.wait(), "Wait")?;
    rpc(server.delete(), "Delete")?;
    server.shutdown()?;
    neighbour.remove()?;
    direct.remove()
}

/// The bare address for containerd 1.6, JSON no newer than it asks for since 1.7.
fn answers(test: &Test) -> Result<()> {
    for (maximum, expected) in [(None, None), (Some("2"), Some(2)), (Some("3"), Some(3)), (Some("9"), Some(3))] {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let output = direct.start_with(
            |command| {
                maximum.map(|maximum| command.env("MAX_SHIM_VERSION", maximum));
            },
            b"",
        )?;
        let output = output.exits(0)?;
        ensure!(output.stderr.is_empty(), "containerd reads stderr as part of the answer: {output}");
        let address = match expected {
            None => output.stdout.clone(),
            Some(version) => {
                let reply: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
                ensure!(reply["version"] == version && reply["protocol"] == "ttrpc", "{reply}");
                reply["address"].as_str().context("an address")?.to_owned()
            }
        };
        ensure!(address.starts_with("unix:///") && !address.contains('\n'), "address {address:?}");
        Server::connect(test.containerd, &test.id, &direct.bundle, &address, 2)?.shutdown()?;
        gone(Path::new(address.trim_start_matches("unix://")))?;
        direct.remove()?;
    }
    Ok(())
}

/// containerd 2.3 and later: protobuf both ways, and a folder for the socket.
fn bootstrap(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["exit", "9"])?)?;
    let folder = test.containerd.fresh_path("s");
    let parameters = BootstrapParams { socket_dir: Some(folder.display().to_string()), ..direct.bootstrap() };
    let mut command = direct.command("start");
    // Such a containerd sets neither.
    command.env_remove("TTRPC_ADDRESS").env_remove("GRPC_ADDRESS");
    let answer = crate::harness::command::raw_output(&mut command, &parameters.write_to_bytes()?)?;
    let result = BootstrapResult::parse_from_bytes(&answer).context("decoding the answer")?;
    ensure!(result.version == 3 && result.protocol == "ttrpc", "{result}");
    let socket = Path::new(result.address.trim_start_matches("unix://")).to_owned();
    ensure!(socket.parent() == Some(&folder), "{result}");
    let mode = fs::metadata(&folder).context("looking at the socket's folder")?.permissions().mode();
    ensure!(mode & 0o777 == 0o700, "the folder's mode is {mode:o}");
    let server = Server::connect(test.containerd, &test.id, &direct.bundle, &result.address, 3)?;
    rpc(server.create(), "Create")?;
    rpc(server.start(), "Start")?;
    ensure!(rpc(server.wait(), "Wait")?.exit_status == 9, "exit status");
    rpc(server.delete(), "Delete")?;
    server.shutdown()?;
    gone(&socket)?;
    fs::remove_dir(&folder).context("removing the socket's folder")?;
    direct.remove()
}

/// The server is killed with its container running: `delete` cleans up, and answers as containerd reads it.
fn delete_binary(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
    let server = direct.start()?;
    let created = rpc(server.create(), "Create")?;
    rpc(server.start(), "Start")?;
    let connected: ConnectResponse = rpc(server.call("Connect", &ConnectRequest::new()), "Connect")?;
    Process::of(connected.shim_pid).context("the shim has ended")?.kill()?;
    let response = direct.delete()?;
    ensure!(response.exit_status == 137 && response.pid == created.pid, "{response:?}");
    ensure!(response.exited_at.seconds > 0, "{response:?}");
    if let Some(init) = Process::of(created.pid) {
        init.wait_for_end().context("init still runs")?;
    }
    // And once more, as after a crash of containerd: there is nothing left to clean.
    direct.delete().context("the second delete")?;
    ensure!(test.runtime() == Runtime::Runc || !server.socket().exists(), "left behind: {}", server.socket().display());
    direct.remove()
}
