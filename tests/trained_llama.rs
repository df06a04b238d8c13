//! The really trained little Llama of the shared material, whose rows are no multiple of 256: export, engine, our own forward.

mod harness;
