;; Imports what no WASI host provides.
(module
  (import "env" "not_provided" (func $not_provided (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $not_provided (i32.const 1)))))
