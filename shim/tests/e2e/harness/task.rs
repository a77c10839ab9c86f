//! A task that the test runs by calls of its own, without containerd in between.
use super::direct::{Direct, Server, code_of};
use super::exec::{Exec, json_any};
use super::fifos::Fifos;
use super::spec::Spec;
use super::{Containerd, Kind};
use anyhow::{Context, Result};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, Empty, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, StatsRequest, StatsResponse, UpdateTaskRequest,
};
use protobuf::MessageField;
use serde_json::{Value, json};
use std::ops::Deref;
use ttrpc::Code;

/// A created or running task, and its shim. Calls are those of [`Server`].
pub struct Task<'a> {
    containerd: &'a Containerd,
    kind: Kind,
    pub direct: Direct<'a>,
    pub server: Server<'a>,
    /// The process of the spec.
    process: Value,
    /// The pid of init.
    pub pid: u32,
}

impl<'a> Task<'a> {
    /// Starts a shim and creates the task, with the request changed at will.
    pub fn create(
        containerd: &'a Containerd,
        kind: Kind,
        direct: Direct<'a>,
        spec: Spec<'a>,
        change: impl FnOnce(&mut CreateTaskRequest),
    ) -> Result<Task<'a>> {
        let direct = direct.config(&spec)?;
        let server = direct.start()?;
        let pid = server.create_as(change).context("Create")?.pid;
        Ok(Task { containerd, kind, direct, server, process: spec.value["process"].clone(), pid })
    }

    /// Creates the task in a shim that was started for it.
    pub fn adopt(
        containerd: &'a Containerd,
        kind: Kind,
        direct: Direct<'a>,
        server: Server<'a>,
        spec: &Spec<'a>,
    ) -> Result<Task<'a>> {
        let pid = server.create().context("Create")?.pid;
        Ok(Task { containerd, kind, direct, server, process: spec.value["process"].clone(), pid })
    }

    /// A further process: the probe with these arguments, else like init.
    pub fn exec(&self, id: &str, arguments: &[&str]) -> Result<Exec<'_>> {
        let program = [&[self.kind.program()], arguments].concat();
        self.exec_program(id, &program)
    }

    /// A further process of any program.
    pub fn exec_program(&self, id: &str, arguments: &[&str]) -> Result<Exec<'_>> {
        let mut process = self.process.clone();
        process["args"] = json!(arguments);
        Ok(Exec::new(&self.server, id, process, Fifos::new(self.containerd)?))
    }

    /// Kills what runs, deletes the task and ends its shim.
    pub fn end(self) -> Result<()> {
        match self.kill(9) {
            // Ended before.
            Err(error) if code_of(&error) == Some(Code::NOT_FOUND) => {}
            killed => killed.map(drop).context("Kill")?,
        }
        self.wait().context("Wait")?;
        self.delete().context("Delete")?;
        self.remove()
    }

    /// Ends the shim of a task that was deleted.
    pub fn remove(self) -> Result<()> {
        self.server.shutdown()?;
        self.direct.remove()
    }
}

impl<'a> Deref for Task<'a> {
    type Target = Server<'a>;

    fn deref(&self) -> &Server<'a> {
        &self.server
    }
}

/// The calls that are not part of a plain life.
impl Server<'_> {
    pub fn pause(&self) -> ttrpc::Result<Empty> {
        self.call("Pause", &PauseRequest { id: self.id.clone(), ..Default::default() })
    }

    pub fn resume(&self) -> ttrpc::Result<Empty> {
        self.call("Resume", &ResumeRequest { id: self.id.clone(), ..Default::default() })
    }

    pub fn pids(&self) -> ttrpc::Result<PidsResponse> {
        self.call("Pids", &PidsRequest { id: self.id.clone(), ..Default::default() })
    }

    pub fn stats(&self) -> ttrpc::Result<StatsResponse> {
        self.call("Stats", &StatsRequest { id: self.id.clone(), ..Default::default() })
    }

    /// Update with resources as the OCI runtime spec has them (config-linux.md, "Control groups").
    pub fn update(&self, resources: Value) -> ttrpc::Result<Empty> {
        let resources = MessageField::some(json_any("LinuxResources", &resources));
        self.call("Update", &UpdateTaskRequest { id: self.id.clone(), resources, ..Default::default() })
    }

    pub fn checkpoint(&self, path: &str) -> ttrpc::Result<Empty> {
        let request = CheckpointTaskRequest { id: self.id.clone(), path: path.to_owned(), ..Default::default() };
        self.call("Checkpoint", &request)
    }

    pub fn resize(&self, width: u32, height: u32) -> ttrpc::Result<Empty> {
        self.call("ResizePty", &ResizePtyRequest { id: self.id.clone(), width, height, ..Default::default() })
    }

    pub fn close_io(&self) -> ttrpc::Result<Empty> {
        self.call("CloseIO", &CloseIORequest { id: self.id.clone(), stdin: true, ..Default::default() })
    }

    pub fn connected(&self) -> ttrpc::Result<ConnectResponse> {
        self.call("Connect", &ConnectRequest { id: self.id.clone(), ..Default::default() })
    }
}
