pub(super) const BYTES: usize = 176;
pub(super) fn encode(_weights: &[f32], _cols: usize, _imatrix: Option<&[f32]>, _out: &mut [u8]) {
    todo!()
}
pub(super) fn decode(_blocks: &[u8], _out: &mut [f32]) {
    todo!()
}
