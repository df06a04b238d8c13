//! Memory that experts are planned for: this machine's, or that of a card that is stated.

use crate::bytes;
use crate::failure::Failure;
use runner::Engine;
use runner::budget::{Available, Place};
use runner::engine::llama::LlamaEngine;

/// How much memory there is, and where experts run.
pub struct Room {
    pub place: Place,
    pub available: Available,
    /// Main memory in all, as far as it is planned for.
    pub total_bytes: u64,
    /// For people: `7.22 GiB of a card of 8 GB, 800 MB left to others`.
    pub shown: String,
}

impl Room {
    /// A card of `memory` bytes, of which `reserve` are not to be had, or what is free on this machine.
    pub fn new(memory: Option<u64>, reserve: u64) -> Result<Room, Failure> {
        let Some(memory) = memory else { return Room::of_this_machine() };
        let free = memory.saturating_sub(reserve);
        if free == 0 {
            return Err(Failure::new(format!(
                "of {} nothing is left when {} are reserved",
                bytes::show_round(memory),
                bytes::show_round(reserve)
            )));
        }
        let shown = format!(
            "{} of a card of {}, {} left to others",
            bytes::show(free),
            bytes::show_round(memory),
            bytes::show_round(reserve)
        );
        let available = Available { card_bytes: Some(free), main_bytes: None };
        Ok(Room { place: Place::Card, available, total_bytes: 0, shown })
    }

    fn of_this_machine() -> Result<Room, Failure> {
        let engine = LlamaEngine::new()?;
        let memory = engine.memory();
        let available = Available::now(&memory);
        let place = engine.place();
        let free = match place {
            Place::Card => available.card_bytes,
            Place::Main => available.main_bytes,
        };
        let of = match place {
            Place::Card => {
                memory.devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ")
            }
            Place::Main => "this machine's memory".into(),
        };
        let free = free.map_or_else(|| "an unknown part".into(), bytes::show);
        let total_bytes = memory.total_bytes;
        Ok(Room { place, available, total_bytes, shown: format!("{free} free of {of}") })
    }

    /// What is free where experts run, if anybody knows.
    pub fn free_bytes(&self) -> Option<u64> {
        match self.place {
            Place::Card => self.available.card_bytes,
            Place::Main => self.available.main_bytes,
        }
    }
}
