//! How long a tokenizer takes to load: `tokenizer_load DIR [ROUNDS]`.

use std::path::PathBuf;
use std::time::Instant;

use text::Tokenizer;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().expect("usage: tokenizer_load DIR [ROUNDS]"));
    let rounds: u32 = arguments.next().map_or(5, |rounds| rounds.parse().expect("a number of rounds"));
    for _ in 0..rounds {
        let started = Instant::now();
        let tokenizer = Tokenizer::from_dir(&dir).expect("a tokenizer");
        let loaded = started.elapsed();
        let metadata = tokenizer.gguf_metadata(tokenizer.vocab_size()).expect("its keys");
        let written = started.elapsed();
        let metadata = metadata.into_iter().collect();
        Tokenizer::from_gguf(&metadata).expect("the same tokenizer");
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        println!(
            "from its folder {:.0} ms, to the keys of a GGUF {:.0} ms, from these {:.0} ms",
            ms(loaded),
            ms(written - loaded),
            ms(started.elapsed() - written)
        );
    }
}
