#![no_main]
//! The process of an exec: a plan or an error, never a panic. See `executors::fuzzing`.

use executors::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Err(error) = executors::fuzzing::process(json) {
        assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::Unimplemented), "{error:?}");
    }
});
