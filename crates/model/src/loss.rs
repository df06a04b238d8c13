//! Cross-entropy over tiles of vocabulary and tokens: the (N, V) logits never exist, masked tokens cost nothing.
