#![no_main]
//! What the cache of precompiled code says of an entry: read or passed over, never a panic. See `executors::fuzzing`.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    executors::fuzzing::about(json);
});
