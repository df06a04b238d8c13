pub(super) fn encode_f32(_weights: &[f32], _out: &mut [u8]) {
    todo!()
}
pub(super) fn decode_f32(_blocks: &[u8], _out: &mut [f32]) {
    todo!()
}
pub(super) fn encode_f16(_weights: &[f32], _out: &mut [u8]) {
    todo!()
}
pub(super) fn decode_f16(_blocks: &[u8], _out: &mut [f32]) {
    todo!()
}
pub(super) fn encode_bf16(_weights: &[f32], _out: &mut [u8]) {
    todo!()
}
pub(super) fn decode_bf16(_blocks: &[u8], _out: &mut [f32]) {
    todo!()
}
