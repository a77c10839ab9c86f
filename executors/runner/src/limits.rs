//! The bounds of a guest's memory, and the count of it.
//!
//! A guest that grows beyond what its container may take would be killed by the kernel, at whatever page it touches next.
//! So growing fails before, as WebAssembly has it: `memory.grow` and `table.grow` give -1, and what is too large from the
//! beginning is not instantiated.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use wasmtime::ResourceLimiter;

use crate::metrics::Metrics;

/// What one element of a table takes, in bytes.
const ELEMENT: usize = size_of::<usize>();

/// How many instances, memories and tables one guest may have; Wasmtime's own number.
const MAX_OBJECTS: usize = 10_000;

/// The memory of all guests of this process: linear memories and tables.
pub(crate) struct Budget {
    /// How much there may be, in bytes.
    limit: usize,
    taken: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub fn new(limit: Option<u64>, metrics: Arc<Metrics>) -> Arc<Budget> {
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Arc::new(Budget { limit, taken: AtomicUsize::new(0), metrics })
    }

    /// Whether there is room for so much more; it is taken then.
    fn take(&self, bytes: usize) -> bool {
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.limit);
        self.taken.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Relaxed);
    }
}

/// The limiter of one store.
pub(crate) struct Limits {
    budget: Arc<Budget>,
    /// What this store has taken of it, as memory and as tables.
    memory: usize,
    tables: usize,
    /// What was taken for the growth that is under way.
    growing: usize,
}

impl Limits {
    pub fn new(budget: &Arc<Budget>) -> Limits {
        budget.metrics.instances.fetch_add(1, Relaxed);
        budget.metrics.instances_total.fetch_add(1, Relaxed);
        Limits { budget: budget.clone(), memory: 0, tables: 0, growing: 0 }
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.give_back(self.memory + self.tables);
        self.budget.metrics.instances.fetch_sub(1, Relaxed);
        self.budget.metrics.memory.fetch_sub(self.memory, Relaxed);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        // What is beyond the type's own maximum fails anyway, and nobody would say so.
        if maximum.is_some_and(|maximum| desired > maximum) || !self.budget.take(more) {
            self.growing = 0;
            self.budget.metrics.refused.fetch_add(1, Relaxed);
            return Ok(false);
        }
        (self.growing, self.memory) = (more, self.memory + more);
        self.budget.metrics.memory.fetch_add(more, Relaxed);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.budget.give_back(self.growing);
        self.memory -= self.growing;
        self.budget.metrics.memory.fetch_sub(std::mem::take(&mut self.growing), Relaxed);
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current).saturating_mul(ELEMENT);
        if maximum.is_some_and(|maximum| desired > maximum) || !self.budget.take(more) {
            self.growing = 0;
            self.budget.metrics.refused.fetch_add(1, Relaxed);
            return Ok(false);
        }
        (self.growing, self.tables) = (more, self.tables + more);
        Ok(true)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.budget.give_back(self.growing);
        self.tables -= std::mem::take(&mut self.growing);
        Ok(())
    }

    fn instances(&self) -> usize {
        MAX_OBJECTS
    }

    fn tables(&self) -> usize {
        MAX_OBJECTS
    }

    fn memories(&self) -> usize {
        MAX_OBJECTS
    }
}
