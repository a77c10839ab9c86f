;; Traps in a function that has a name, so that a backtrace can show it.
(module
  (memory (export "memory") 1)
  (func $give_up unreachable)
  (func (export "_start") call $give_up))
