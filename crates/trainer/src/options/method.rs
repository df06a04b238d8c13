//! `train.method`: what is minimised, and its numbers.

use model::preference::Preference;
use serde::{Deserialize, Serialize};

use super::{TrainOptions, refuse};
use crate::error::Result;

/// What is minimised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The loss of what is to be learned, token by token: supervised fine-tuning.
    #[default]
    Sft,
    /// Direct preference optimisation, arXiv:2305.18290: two answers against what the base thinks of them.
    Dpo,
    /// Odds-ratio preference optimisation, arXiv:2403.07691: two answers, the better one learned.
    Orpo,
}

impl Method {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
        }
    }
}

impl TrainOptions {
    /// The loss over pairs, where the method learns from preferences.
    pub fn preference(&self) -> Option<Preference> {
        let beta = self.beta.unwrap_or(0.1);
        let [label_smoothing, rpo_alpha] =
            [self.label_smoothing, self.rpo_alpha].map(|value| value.unwrap_or(0.0));
        match self.method {
            Method::Sft => None,
            Method::Dpo => Some(Preference::Dpo { beta, label_smoothing, rpo_alpha }),
            Method::Orpo => Some(Preference::Orpo { beta }),
        }
    }

    /// Checks what the method's numbers can be.
    ///
    /// # Errors
    /// [`crate::Error::Option`].
    pub(super) fn validate_method(&self) -> Result<()> {
        let method = self.method;
        let is_dpo = method == Method::Dpo;
        let of_dpo = "is of `train.method = \"dpo\"` alone";
        refuse(
            self.beta.is_some() && method == Method::Sft,
            "train.beta",
            "is of `train.method = \"dpo\"` and `\"orpo\"`, and the method is `\"sft\"`",
        )?;
        refuse(self.label_smoothing.is_some() && !is_dpo, "train.label_smoothing", of_dpo)?;
        refuse(self.rpo_alpha.is_some() && !is_dpo, "train.rpo_alpha", of_dpo)?;
        let beta = self.beta.unwrap_or(0.1);
        refuse(!(beta.is_finite() && beta > 0.0), "train.beta", "must be a number above 0")?;
        let smoothing = self.label_smoothing.unwrap_or(0.0);
        refuse(
            !(0.0..0.5).contains(&smoothing),
            "train.label_smoothing",
            "must lie between 0 and 0.5, 0.5 left out",
        )?;
        let alpha = self.rpo_alpha.unwrap_or(0.0);
        refuse(!(alpha.is_finite() && alpha >= 0.0), "train.rpo_alpha", "must be a number not below 0")
    }
}
