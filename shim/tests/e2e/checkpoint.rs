//! Checkpoint and restore, by criu.
use crate::harness::direct::{Direct, code_of, refused};
use crate::harness::fifos::Fifos;
use crate::harness::spec::Spec;
use crate::harness::task::Task;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{CheckpointTaskRequest, Empty, Status};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::json;
use std::fs;
use std::path::Path;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("goes_on_counting_elsewhere", |test| {
        let counter = Counter::start(test, test.spec(&["count"])?)?;
        let images = counter.end_in_checkpoint()?;
        let mut restored = Counter::restore(test, "restored", &images, |spec| Ok(spec))?;
        restored.counts(3)?;
        let output = restored.task.exec("one", &["hello"])?.run()?.exits(0)?;
        ensure!(!output.stdout.is_empty(), "{output}");
        restored.task.stats().context("Stats")?;
        restored.end()
    })
    .hybrid_only(), // runc is not given criu's path
    Case::new("leaves_it_running", |test| {
        let mut counter = Counter::start(test, test.spec(&["count"])?)?;
        let images = counter.images();
        dump(&counter.task, &images, |_| ())?;
        counter.counts(3)?;
        // Paused it stays so.
        counter.task.pause().context("Pause")?;
        dump(&counter.task, &images, |_| ())?;
        ensure!(counter.task.state().context("State")?.status() == Status::PAUSED, "no longer paused");
        counter.task.resume().context("Resume")?;
        counter.counts(4)?;
        counter.end()
    })
    .hybrid_only(),
];

/// A task that answers lines with their number.
struct Counter<'a> {
    task: Task<'a>,
    fifos: Fifos,
}

impl<'a> Counter<'a> {
    /// One that has counted two lines.
    fn start(test: &Test<'a>, spec: Spec<'a>) -> Result<Counter<'a>> {
        let fifos = Fifos::new(test.containerd)?;
        let task = test.created(spec, |request| fifos.name(request))?;
        task.start().context("Start")?;
        let mut counter = Counter { task, fifos };
        counter.counts(1)?;
        counter.counts(2)?;
        Ok(counter)
    }

    /// A task in a shim of its own, from a checkpoint.
    fn restore(
        test: &Test<'a>,
        name: &str,
        images: &str,
        change: impl FnOnce(Spec<'a>) -> Result<Spec<'a>>,
    ) -> Result<Counter<'a>> {
        let fifos = Fifos::new(test.containerd)?;
        let id = test.other(name);
        let spec = change(Spec::default(test.containerd, test.kind, &id, &["count"])?)?;
        let direct = Direct::new(test.containerd, test.runtime(), &id)?;
        let task = Task::create(test.containerd, test.kind, direct, spec, |request| {
            fifos.name(request);
            request.checkpoint = images.to_owned();
        })?;
        ensure!(task.pid == 0, "a pid before there is a process: {}", task.pid);
        let pid = task.start().context("Start")?.pid;
        ensure!(pid != 0, "no pid");
        Ok(Counter { task, fifos })
    }

    fn images(&self) -> String {
        self.task.bundle().join("checkpoint").display().to_string()
    }

    fn counts(&mut self, number: u32) -> Result<()> {
        self.fifos.write(b"\n")?;
        self.fifos.stdout.wait_for(&format!("{number}\n"))
    }

    /// Ends with its state in a folder, which is returned.
    fn end_in_checkpoint(self) -> Result<String> {
        let images = self.task.direct.bundle.with_extension("checkpoint").display().to_string();
        dump(&self.task, &images, |options| options.exit = true)?;
        let exit = self.task.wait().context("Wait")?.exit_status;
        ensure!(exit == 137, "ended with {exit}");
        self.task.delete().context("Delete")?;
        self.task.remove()?;
        Ok(images)
    }

    fn end(self) -> Result<()> {
        self.task.end()
    }
}

fn dump(task: &Task, images: &str, change: impl FnOnce(&mut CheckpointOptions)) -> Result<()> {
    checkpoint(task, images, change).map(drop).context("Checkpoint")
}

fn checkpoint(task: &Task, images: &str, change: impl FnOnce(&mut CheckpointOptions)) -> ttrpc::Result<Empty> {
    let mut options = CheckpointOptions::default();
    change(&mut options);
    let mut any = Any::new();
    any.type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
    any.value = options.write_to_bytes().unwrap_or_default();
    let options = MessageField::some(any);
    task.call("Checkpoint", &CheckpointTaskRequest { id: task.id.clone(), path: images.to_owned(), options, ..Default::default() })
}
