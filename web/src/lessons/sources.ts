/** What the lessons rest on. */

export interface Source {
  readonly authors: string;
  readonly year: number;
  readonly title: string;
  readonly arxiv?: string;
}

export const SOURCES = {
  hochreiter1991: {
    authors: "S. Hochreiter",
    year: 1991,
    title: "Untersuchungen zu dynamischen neuronalen Netzen (diploma thesis)",
  },
  lstm: { authors: "S. Hochreiter, J. Schmidhuber", year: 1997, title: "Long short-term memory" },
  zeiler: {
    authors: "M. D. Zeiler, R. Fergus",
    year: 2014,
    title: "Visualizing and understanding convolutional networks",
    arxiv: "1311.2901",
  },
  szegedy: {
    authors: "C. Szegedy and others",
    year: 2015,
    title: "Going deeper with convolutions",
    arxiv: "1409.4842",
  },
  eldan: {
    authors: "R. Eldan, O. Shamir",
    year: 2016,
    title: "The power of depth for feedforward neural networks",
    arxiv: "1512.03965",
  },
  telgarsky: {
    authors: "M. Telgarsky",
    year: 2016,
    title: "Benefits of depth in neural networks",
    arxiv: "1602.04485",
  },
  olah: { authors: "C. Olah, A. Mordvintsev, L. Schubert", year: 2017, title: "Feature visualization (Distill)" },
  xiao: {
    authors: "L. Xiao, Y. Bahri, J. Sohl-Dickstein, S. S. Schoenholz, J. Pennington",
    year: 2018,
    title: "Dynamical isometry and a mean field theory of CNNs",
    arxiv: "1806.05393",
  },
  rezero: {
    authors: "T. Bachlechner and others",
    year: 2021,
    title: "ReZero is all you need: fast convergence at large depth",
    arxiv: "2003.04887",
  },
  glorot: {
    authors: "X. Glorot, Y. Bengio",
    year: 2010,
    title: "Understanding the difficulty of training deep feedforward neural networks",
  },
  pascanu: {
    authors: "R. Pascanu, T. Mikolov, Y. Bengio",
    year: 2013,
    title: "On the difficulty of training recurrent neural networks",
    arxiv: "1211.5063",
  },
  delving: {
    authors: "K. He, X. Zhang, S. Ren, J. Sun",
    year: 2015,
    title: "Delving deep into rectifiers",
    arxiv: "1502.01852",
  },
  highway: {
    authors: "R. K. Srivastava, K. Greff, J. Schmidhuber",
    year: 2015,
    title: "Highway networks",
    arxiv: "1505.00387",
  },
  resnet: {
    authors: "K. He, X. Zhang, S. Ren, J. Sun",
    year: 2015,
    title: "Deep residual learning for image recognition",
    arxiv: "1512.03385",
  },
  identity: {
    authors: "K. He, X. Zhang, S. Ren, J. Sun",
    year: 2016,
    title: "Identity mappings in deep residual networks",
    arxiv: "1603.05027",
  },
  veit: {
    authors: "A. Veit, M. Wilber, S. Belongie",
    year: 2016,
    title: "Residual networks behave like ensembles of relatively shallow networks",
    arxiv: "1605.06431",
  },
  poole: {
    authors: "B. Poole, S. Lahiri, M. Raghu, J. Sohl-Dickstein, S. Ganguli",
    year: 2016,
    title: "Exponential expressivity in deep neural networks through transient chaos",
    arxiv: "1606.05340",
  },
  densenet: {
    authors: "G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger",
    year: 2017,
    title: "Densely connected convolutional networks",
    arxiv: "1608.06993",
  },
  schoenholz: {
    authors: "S. S. Schoenholz, J. Gilmer, S. Ganguli, J. Sohl-Dickstein",
    year: 2017,
    title: "Deep information propagation",
    arxiv: "1611.01232",
  },
  balduzzi: {
    authors: "D. Balduzzi, M. Frean, L. Leary, J. P. Lewis, K. W.-D. Ma, B. McWilliams",
    year: 2017,
    title: "The shattered gradients problem",
    arxiv: "1702.08591",
  },
  chrono: {
    authors: "C. Tallec, Y. Ollivier",
    year: 2018,
    title: "Can recurrent neural networks warp time?",
    arxiv: "1804.11188",
  },
  yang: {
    authors: "G. Yang, J. Pennington, V. Rao, J. Sohl-Dickstein, S. S. Schoenholz",
    year: 2019,
    title: "A mean field theory of batch normalization",
    arxiv: "1902.08129",
  },
  smith: {
    authors: "S. De, S. L. Smith",
    year: 2020,
    title: "Batch normalization biases residual blocks towards the identity function in deep networks",
    arxiv: "2002.10444",
  },
  sogaard: {
    authors: "A. Søgaard, Y. Goldberg",
    year: 2016,
    title: "Deep multi-task learning with low level tasks supervised at lower layers (ACL)",
  },
  vaswani: { authors: "A. Vaswani and others", year: 2017, title: "Attention is all you need", arxiv: "1706.03762" },
  bai: {
    authors: "S. Bai, J. Z. Kolter, V. Koltun",
    year: 2018,
    title: "An empirical evaluation of generic convolutional and recurrent networks for sequence modeling",
    arxiv: "1803.01271",
  },
  alrfou: {
    authors: "R. Al-Rfou and others",
    year: 2018,
    title: "Character-level language modeling with deeper self-attention",
    arxiv: "1808.04444",
  },
  hyper: { authors: "D. Zhu and others", year: 2024, title: "Hyper-connections", arxiv: "2409.19606" },
  manifold: {
    authors: "Z. Xie and others",
    year: 2025,
    title: "mHC: manifold-constrained hyper-connections",
    arxiv: "2512.24880",
  },
  attention: { authors: "Kimi team", year: 2026, title: "Attention residuals", arxiv: "2603.15031" },
} as const satisfies Record<string, Source>;

export type SourceName = keyof typeof SOURCES;
