//! Vectors that a server gave: as many as texts, of one width, finite, brought to length 1.

use crate::{Error, Result};

/// The vectors, or what is wrong with them.
pub(crate) fn checked(expert: &str, vectors: Vec<Vec<f32>>, n_texts: usize) -> Result<Vec<Vec<f32>>> {
    let wrong = |reason: String| Error::NoEmbedding { expert: expert.to_owned(), reason };
    if vectors.len() != n_texts {
        return Err(wrong(format!("{n_texts} texts were given {} vectors", vectors.len())));
    }
    let width = vectors.first().map_or(0, Vec::len);
    if let Some(other) = vectors.iter().find(|vector| vector.len() != width || width == 0) {
        return Err(wrong(format!("its vectors have {width} and {} numbers", other.len())));
    }
    vectors
        .into_iter()
        .map(|vector| {
            let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if !length.is_finite() || length == 0.0 {
                return Err(wrong("a vector of its has no direction".to_owned()));
            }
            Ok(vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_one() {
        let vectors = checked("e", vec![vec![3.0, 4.0], vec![0.0, 2.0]], 2).unwrap();
        assert_eq!(vectors, [[0.6, 0.8], [0.0, 1.0]]);
    }

    #[test]
    fn what_is_no_vector_is_refused() {
        for (vectors, n_texts) in [
            (vec![vec![1.0]], 2),
            (vec![vec![1.0], vec![1.0, 2.0]], 2),
            (vec![vec![]], 1),
            (vec![vec![0.0, 0.0]], 1),
            (vec![vec![f32::NAN]], 1),
            (vec![vec![f32::INFINITY]], 1),
        ] {
            assert!(matches!(checked("e", vectors, n_texts), Err(Error::NoEmbedding { .. })));
        }
    }
}
