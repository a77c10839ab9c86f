//! Further processes of a task, by direct calls of the task service.
use super::command::Output;
use super::direct::Server;
use super::fifos::Fifos;
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{
    CloseIORequest, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, ResizePtyRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

/// A process to be added to a task, or one that was.
pub struct Exec<'s> {
    server: &'s Server<'s>,
    pub id: String,
    /// The OCI process (runtime-spec, config.md, "Process").
    pub process: Value,
    /// Nothing for a process without any stream.
    pub fifos: Option<Fifos>,
    terminal: bool,
    /// What stdout and stderr are named instead of the fifos.
    uri: Option<String>,
}

impl<'s> Exec<'s> {
    pub fn new(server: &'s Server<'s>, id: &str, process: Value, fifos: Fifos) -> Exec<'s> {
        Exec { server, id: id.to_owned(), process, fifos: Some(fifos), terminal: false, uri: None }
    }

    /// One without streams.
    pub fn bare(server: &'s Server<'s>, id: &str, process: Value) -> Exec<'s> {
        Exec { server, id: id.to_owned(), process, fifos: None, terminal: false, uri: None }
    }

    /// Sets the value at a JSON pointer of the process, whose last part may be new.
    pub fn set(mut self, pointer: &str, value: Value) -> Result<Exec<'s>> {
        let (parent, last) = pointer.rsplit_once('/').context("a pointer begins with /")?;
        let parent = self.process.pointer_mut(parent).with_context(|| format!("the process has no {parent}"))?;
        parent[last] = value;
        Ok(self)
    }

    /// With no streams at all.
    pub fn null_io(mut self) -> Exec<'s> {
        self.fifos = None;
        self
    }

    /// With stdout and stderr to this URI, and no stdin.
    pub fn streams(mut self, uri: &str) -> Exec<'s> {
        self.uri = Some(uri.to_owned());
        self.null_io()
    }

    /// With a terminal.
    pub fn terminal(mut self) -> Exec<'s> {
        self.terminal = true;
        self
    }

    /// The streams of a process that has some.
    pub fn io(&mut self) -> Result<&mut Fifos> {
        self.fifos.as_mut().context("the process has no streams")
    }

    /// Adds it to the task: the call `Exec`.
    pub fn add(&self) -> ttrpc::Result<Empty> {
        let path = |name| self.fifos.as_ref().map(|fifos| fifos.path(name)).unwrap_or_default();
        let output = |name| self.uri.clone().unwrap_or_else(|| path(name));
        let request = ExecProcessRequest {
            id: self.server.id.clone(),
            exec_id: self.id.clone(),
            terminal: self.terminal,
            stdin: path("stdin"),
            stdout: output("stdout"),
            stderr: if self.terminal { String::new() } else { output("stderr") },
            spec: MessageField::some(json_any("Process", &self.process)),
            ..Default::default()
        };
        self.server.call("Exec", &request)
    }

    pub fn start(&self) -> ttrpc::Result<StartResponse> {
        let request = StartRequest { id: self.server.id.clone(), exec_id: self.id.clone(), ..Default::default() };
        self.server.call("Start", &request)
    }

    pub fn state(&self) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: self.server.id.clone(), exec_id: self.id.clone(), ..Default::default() };
        self.server.call("State", &request)
    }

    pub fn kill(&self, signal: u32) -> ttrpc::Result<Empty> {
        let (id, exec_id) = (self.server.id.clone(), self.id.clone());
        self.server.call("Kill", &KillRequest { id, exec_id, signal, ..Default::default() })
    }

    pub fn wait(&self) -> ttrpc::Result<WaitResponse> {
        let request = WaitRequest { id: self.server.id.clone(), exec_id: self.id.clone(), ..Default::default() };
        self.server.call("Wait", &request)
    }

    pub fn delete(&self) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest { id: self.server.id.clone(), exec_id: self.id.clone(), ..Default::default() };
        self.server.call("Delete", &request)
    }

    pub fn resize(&self, width: u32, height: u32) -> ttrpc::Result<Empty> {
        let (id, exec_id) = (self.server.id.clone(), self.id.clone());
        self.server.call("ResizePty", &ResizePtyRequest { id, exec_id, width, height, ..Default::default() })
    }

    /// Closes the shim's end of stdin.
    pub fn close_io(&self) -> ttrpc::Result<Empty> {
        let (id, exec_id) = (self.server.id.clone(), self.id.clone());
        self.server.call("CloseIO", &CloseIORequest { id, exec_id, stdin: true, ..Default::default() })
    }

    /// Adds and starts it; returns its pid.
    pub fn spawn(&self) -> Result<u32> {
        self.add().with_context(|| format!("Exec of {}", self.id))?;
        Ok(self.start().with_context(|| format!("Start of {}", self.id))?.pid)
    }

    /// Ends stdin, as a client does that has no more to say.
    pub fn end_stdin(&mut self) -> Result<()> {
        self.io()?.close_stdin();
        self.close_io().context("CloseIO").map(drop)
    }

    /// Waits for its end, deletes it, and returns what it wrote.
    pub fn finish(self) -> Result<Output> {
        let exit = self.wait().with_context(|| format!("Wait for {}", self.id))?;
        let deleted = self.delete().with_context(|| format!("Delete of {}", self.id))?;
        ensure!(exit.exited_at.seconds > 0, "no time of the end: {exit:?}");
        ensure!(deleted.exit_status == exit.exit_status && deleted.exited_at == exit.exited_at, "{exit:?} {deleted:?}");
        let (stdout, stderr) = match &self.fifos {
            Some(fifos) if self.terminal => {
                (String::from_utf8_lossy(&fifos.stdout.to_end()?).into_owned(), String::new())
            }
            Some(fifos) => fifos.to_end()?,
            None => Default::default(),
        };
        Ok(Output::new(
            format!("{} in {}", self.process["args"], self.server.id),
            exit.exit_status as i32,
            stdout,
            stderr,
        ))
    }

    /// Runs it with an empty stdin to its end.
    pub fn run(mut self) -> Result<Output> {
        self.spawn()?;
        if self.fifos.is_some() && !self.terminal {
            self.end_stdin()?;
        }
        self.finish()
    }
}

/// JSON of a type of the OCI runtime spec, packed as containerd's clients do (typeurl).
pub fn json_any(name: &str, value: &Value) -> Any {
    Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{name}"),
        value: value.to_string().into_bytes(),
        ..Default::default()
    }
}
