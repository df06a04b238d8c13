//! TFRecord frames: length, checksum of the length, data, checksum of the data; all little-endian.

use std::io::{ErrorKind, Read, Result};

use super::crc32c::crc32c;

/// Bytes around the data.
pub const OVERHEAD_BYTES: u64 = 16;

/// Longer data is refused; ours is under a kilobyte, TensorBoard's own pictures some megabytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// A checksum as TFRecord stores it: rotated and shifted, so that a frame within a frame does not fool it.
pub fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// The data in its frame.
pub fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(data.len() + OVERHEAD_BYTES as usize);
    frame.extend(length);
    frame.extend(masked(&length).to_le_bytes());
    frame.extend(data);
    frame.extend(masked(data).to_le_bytes());
    frame
}

/// What stands at a place of a file.
pub enum Frame {
    /// Nothing more.
    End,
    /// The beginning of a frame that was never completed.
    Torn,
    /// A checksum is wrong.
    Damaged,
    /// A frame that claims to be this long.
    TooLong(u64),
    /// The data of a sound frame.
    Whole(Vec<u8>),
}

/// Reads the next frame.
pub fn read_frame(input: &mut impl Read) -> Result<Frame> {
    let mut head = [0; 12];
    match read_up_to(input, &mut head)? {
        0 => return Ok(Frame::End),
        12 => {}
        _ => return Ok(Frame::Torn),
    }
    let [length, checksum] = [&head[..8], &head[8..]];
    if masked(length).to_le_bytes() != checksum {
        return Ok(Frame::Damaged);
    }
    let length = u64::from_le_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
    if length > MAX_BYTES {
        return Ok(Frame::TooLong(length));
    }
    // Grows with what is there, not with what the head claims.
    let mut data = Vec::new();
    input.take(length + 4).read_to_end(&mut data)?;
    if data.len() as u64 != length + 4 {
        return Ok(Frame::Torn);
    }
    let checksum = data.split_off(data.len() - 4);
    if masked(&data).to_le_bytes()[..] != checksum[..] {
        return Ok(Frame::Damaged);
    }
    Ok(Frame::Whole(data))
}

/// Fills the buffer as far as the input goes.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
