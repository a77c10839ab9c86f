;; Uses the proposal wide-arithmetic.
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (i64.mul_wide_u (i64.const 3) (i64.const 4))
    drop
    drop))
