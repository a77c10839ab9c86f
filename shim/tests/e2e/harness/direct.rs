//! Calls the shim's binary and its ttrpc service as containerd does, for what `ctr` cannot send.
use super::command::{Output, output};
use super::spec::Spec;
use super::{Containerd, NAMESPACE, PATIENCE, Runtime};
use anyhow::{Context, Result, anyhow, ensure};
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, KillRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use ttrpc::Code;

/// A bundle made by the test.
pub struct Direct<'a> {
    containerd: &'a Containerd,
    runtime: Runtime,
    pub id: String,
    /// `<a folder of its own>/<id>`.
    pub bundle: PathBuf,
    /// Both ends of the log fifo, as containerd holds them; the shim's lines stay in it until [`Direct::log`].
    _log: File,
}

impl<'a> Direct<'a> {
    pub fn new(containerd: &'a Containerd, runtime: Runtime, id: &str) -> Result<Direct<'a>> {
        let bundle = containerd.fresh_path("bundles").join(id);
        fs::create_dir_all(&bundle).with_context(|| format!("creating {}", bundle.display()))?;
        let log = bundle.join("log");
        rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .context("making the log fifo")?;
        let log = OpenOptions::new().read(true).write(true).open(&log).context("opening the log fifo")?;
        Ok(Direct { containerd, runtime, id: id.to_owned(), bundle, _log: log })
    }

    /// Writes config.json from a spec.
    pub fn config(self, spec: &Spec) -> Result<Direct<'a>> {
        self.raw_config(spec.value.to_string())
    }

    /// Writes config.json as it is.
    pub fn raw_config(self, text: impl AsRef<[u8]>) -> Result<Direct<'a>> {
        fs::write(self.bundle.join("config.json"), text).context("writing config.json")?;
        Ok(self)
    }

    /// The shim's binary with the flags, the environment and the folder that containerd calls it with.
    pub fn command(&self, action: &str) -> Command {
        let address = self.containerd.address();
        let mut command = Command::new(self.containerd.shim(self.runtime));
        command
            .args(["-namespace", NAMESPACE, "-id", &self.id, "-address"])
            .arg(&address)
            .args(["-publish-binary", "/bin/true"])
            .current_dir(&self.bundle)
            .env_remove("MAX_SHIM_VERSION")
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", address.display()))
            .env("GRPC_ADDRESS", &address)
            .env("NAMESPACE", NAMESPACE)
            .env("HYBRID_WASM_CACHE", self.containerd.wasm_cache());
        if action == "delete" {
            command.arg("-bundle").arg(&self.bundle);
        }
        command.arg(action);
        command
    }

    /// Runs `start` as containerd 1.6 does and connects to the address it prints.
    pub fn start(&self) -> Result<Server<'a>> {
        self.started_with(|_| ())
    }

    /// The same with the command changed at will.
    pub fn started_with(&self, change: impl FnOnce(&mut Command)) -> Result<Server<'a>> {
        let output = self.start_with(change, b"")?.exits(0)?;
        let address = output.stdout.trim();
        // runc's shim of containerd 2 answers in JSON whoever asks.
        let (address, version) = match serde_json::from_str::<Value>(address) {
            Ok(reply) => {
                let text = reply["address"].as_str().context("the reply has an address")?.to_owned();
                (text, reply["version"].as_i64().context("the reply has a version")?)
            }
            Err(_) => (address.to_owned(), 2),
        };
        let version = if self.runtime == Runtime::Hybrid { 2 } else { version };
        self.connect(&address, version)
    }

    /// Connects to the shim of this bundle.
    pub fn connect(&self, address: &str, version: i64) -> Result<Server<'a>> {
        Server::connect(self.containerd, &self.id, &self.bundle, address, version)
    }

    /// What containerd 2.3 and later write to the stdin of `start`, without extensions.
    pub fn bootstrap(&self) -> BootstrapParams {
        let address = self.containerd.address();
        BootstrapParams {
            instance_id: self.id.clone(),
            namespace: NAMESPACE.to_owned(),
            containerd_version: "2.3.4".to_owned(),
            containerd_ttrpc_address: format!("{}.ttrpc", address.display()),
            containerd_grpc_address: address.display().to_string(),
            ..Default::default()
        }
    }

    /// Runs `start` with the command changed at will and `input` on stdin.
    pub fn start_with(&self, change: impl FnOnce(&mut Command), input: &[u8]) -> Result<Output> {
        let mut command = self.command("start");
        change(&mut command);
        output(&mut command, input)
    }

    /// What the shim has logged and nobody has read yet.
    pub fn log(&self) -> Result<String> {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let path = self.bundle.join("log");
        let mut fifo =
            OpenOptions::new().read(true).custom_flags(nonblocking).open(path).context("opening the log fifo")?;
        let mut bytes = Vec::new();
        match fifo.read_to_end(&mut bytes) {
            // Empty, and not at its end, as the other descriptor could write.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => result.map(drop).context("reading the log fifo")?,
        }
        String::from_utf8(bytes).context("the log is text")
    }

    /// Runs `delete` and returns what it answers on stdout.
    pub fn delete(&self) -> Result<DeleteResponse> {
        let output = self.command("delete").output().context("running delete")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "delete failed ({}): {stderr}", output.status);
        DeleteResponse::parse_from_bytes(&output.stdout).context("decoding delete's answer")
    }

    /// Removes the bundle as containerd does after a task's end.
    pub fn remove(self) -> Result<()> {
        let folder = self.bundle.parent().context("a bundle lies in a folder")?;
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))
    }
}

/// A connection to a shim's server.
pub struct Server<'a> {
    containerd: &'a Containerd,
    pub id: String,
    bundle: PathBuf,
    pub address: String,
    service: String,
    client: ttrpc::Client,
}

impl<'a> Server<'a> {
    pub fn connect(
        containerd: &'a Containerd,
        id: &str,
        bundle: &Path,
        address: &str,
        version: i64,
    ) -> Result<Server<'a>> {
        let client = ttrpc::Client::connect(address).map_err(|error| anyhow!("connecting to {address}: {error}"))?;
        let service = format!("containerd.task.v{version}.Task");
        Ok(Server {
            containerd,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            address: address.to_owned(),
            service,
            client,
        })
    }

    /// A further connection to the same shim, for a call that blocks, or for another version of the task service.
    pub fn again(&self, version: i64) -> Result<Server<'a>> {
        Server::connect(self.containerd, &self.id, &self.bundle, &self.address, version)
    }

    /// The bundle's folder.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The same connection, for the task of another bundle.
    pub fn of(&self, direct: &Direct) -> Server<'a> {
        Server {
            containerd: self.containerd,
            id: direct.id.clone(),
            bundle: direct.bundle.clone(),
            address: self.address.clone(),
            service: self.service.clone(),
            client: self.client.clone(),
        }
    }

    /// The path of the socket the shim listens on.
    pub fn socket(&self) -> &Path {
        Path::new(self.address.trim_start_matches("unix://"))
    }

    /// The name of the task service that is called, with its version.
    pub fn service_name(&self) -> &str {
        &self.service
    }

    /// Any call of the task service.
    pub fn call<Request: Message, Response: Message>(
        &self,
        method: &str,
        request: &Request,
    ) -> ttrpc::Result<Response> {
        self.call_within(PATIENCE, method, request)
    }

    /// The same with another time limit.
    pub fn call_within<Request: Message, Response: Message>(
        &self,
        limit: Duration,
        method: &str,
        request: &Request,
    ) -> ttrpc::Result<Response> {
        self.call_in(ttrpc::context::with_duration(limit), method, request)
    }

    /// The same with a time limit and metadata.
    pub fn call_in<Request: Message, Response: Message>(
        &self,
        ctx: ttrpc::context::Context,
        method: &str,
        request: &Request,
    ) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        ttrpc::client_request!(self, ctx, request, self.service, method, response);
        Ok(response)
    }

    /// Creates the bundle's task, with its output in files `stdout` and `stderr` beside the bundle's config.json.
    pub fn create(&self) -> ttrpc::Result<CreateTaskResponse> {
        self.create_as(|_| ())
    }

    /// The same with the request changed at will.
    pub fn create_as(&self, change: impl FnOnce(&mut CreateTaskRequest)) -> ttrpc::Result<CreateTaskResponse> {
        let mut request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            stdout: format!("file://{}", self.bundle.join("stdout").display()),
            stderr: format!("file://{}", self.bundle.join("stderr").display()),
            ..Default::default()
        };
        change(&mut request);
        self.call("Create", &request)
    }

    pub fn start(&self) -> ttrpc::Result<StartResponse> {
        self.call("Start", &StartRequest { id: self.id.clone(), ..Default::default() })
    }

    pub fn state(&self) -> ttrpc::Result<StateResponse> {
        self.call("State", &StateRequest { id: self.id.clone(), ..Default::default() })
    }

    pub fn kill(&self, signal: u32) -> ttrpc::Result<Empty> {
        self.call("Kill", &KillRequest { id: self.id.clone(), signal, ..Default::default() })
    }

    pub fn wait(&self) -> ttrpc::Result<WaitResponse> {
        self.call("Wait", &WaitRequest { id: self.id.clone(), ..Default::default() })
    }

    pub fn delete(&self) -> ttrpc::Result<DeleteResponse> {
        self.call("Delete", &DeleteRequest { id: self.id.clone(), ..Default::default() })
    }

    /// Asks the shim to end, which it does when it has no task.
    pub fn shutdown(&self) -> Result<()> {
        match self.call::<_, Empty>("Shutdown", &ShutdownRequest { id: self.id.clone(), ..Default::default() }) {
            Ok(_) => Ok(()),
            // runc's shim ends before its answer is out.
            Err(error) if code_of(&error).is_none() => Ok(()),
            Err(error) => Err(error).context("Shutdown"),
        }
    }

    /// What the container has written to the file that `create` named as its stdout.
    pub fn stdout(&self) -> Result<String> {
        fs::read_to_string(self.bundle.join("stdout")).context("reading the container's stdout")
    }
}

/// The status code of an answer; nothing when the connection broke.
pub fn code_of(error: &ttrpc::Error) -> Option<Code> {
    if let ttrpc::Error::RpcStatus(status) = error { status.code.enum_value().ok() } else { None }
}

/// Fails unless the call was answered with the status code; returns the answer's words.
pub fn refused<T>(result: ttrpc::Result<T>, code: Code) -> Result<String> {
    match result {
        Ok(_) => Err(anyhow!("succeeded, but should have been answered with {code:?}")),
        Err(error) => {
            ensure!(code_of(&error) == Some(code), "answered with {error:?} instead of {code:?}");
            Ok(error.to_string())
        }
    }
}
