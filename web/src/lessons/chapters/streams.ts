import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: {
    depth: 60,
    streams: 4,
    iterations: 20,
    spread: 0.2,
    activation: "relu",
    init: "he",
    norm: "layer",
    preActivation: true,
    width: 32,
    connections: ["residual", "hyper", "attention"],
  },
  sections: [
    {
      title: "Several streams",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A residual network has one stream that all layers add to. *Hyper-connections* (HC) carry several, four for
              instance: each layer reads a mixture of them, writes to each as much as it has learned to, and mixes the streams
              among each other. The mixing is a small table of numbers, and these are learned.

              Mixing follows upon mixing. So the tables multiply, layer by layer, just as the weights did in chapter two, and
              the same question is back: what does a product of many do?`,
            expert: `The stream is a matrix X of n rows. Read and write coefficients are vectors, Hʳᵉˢ an n × n matrix, static or
              computed from the input. At the start Hʳᵉˢ is the identity, and the network is the pre-norm residual one.
              Training moves each entry; a gain over 60 sublayers is a product of 60 matrices. Of I + εZ with normal Z a row
              sum of the product has a mean square of (1 + nε²)ᴸ: 7.4×10³ for n = 4, ε = 0.2 and L = 60.`,
          },
        },
        { kind: "formula", name: "streams", expert: true },
        {
          kind: "correction",
          said: "The residual network's paper shows all three in its first figure: the residual layer, HC and mHC.",
          text: {
            simple:
              "That figure is the first one of the paper on mHC, ten years later. The makers of the residual network knew neither of the other two.",
            expert:
              "Figure 1 of Xie et al. (2025). He et al. (2015) draw training errors in theirs, and one residual block in figure 2; HC is of 2024.",
          },
        },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "number",
            text: {
              simple:
                "Sixty layers with four streams. Each number of each table has moved from its start by about 0.2, at random. By how much do all of them together multiply a signal that is alike in all streams?",
              expert: "The largest |row sum| of a product of 60 matrices I + 0.2 Z, 4 × 4?",
            },
            ask: { quantity: "gain", kind: "hyper" },
            low: 0.1,
            high: 1e6,
            unit: "times",
            why: {
              simple: "Small steps, a large product. And it grows with each further layer.",
              expert:
                "The root of the expectation above is 86, and most draws are below it: much of an expected square sits in rare large products.",
            },
          },
        },
      ],
      drawing: {
        kind: "mixing",
        title: "Gain of the mixing, first layer to each",
        controls: ["spread", "depth", "streams", "iterations"],
        caption: {
          simple:
            "By how much the tables of all layers up to this one multiply a signal that is alike in all streams (in the stream where that is most).",
          expert:
            "Largest |row sum| (forward) of the products. HC: I + σZ. mHC: Sinkhorn of its starting logits + 10σZ, with the same normal Z.",
        },
      },
    },
    {
      title: "On a manifold",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `*Manifold-constrained* hyper-connections (mHC) allow only tables whose rows and columns each sum to 1, without
              negative numbers. Such a table averages: nothing comes out larger than what went in, and products of such
              tables are such tables again. *Sinkhorn's* method makes one of any table: divide the columns by their sums,
              then the rows by theirs, and again.`,
            expert: `Doubly stochastic matrices are closed under products and have a spectral norm of 1. mHC takes the exponential of its
              logits and 20 Sinkhorn iterations, columns first, rows last. Its authors report composite gains of about 3,000 for
              HC and 1.6 for mHC in a model of 27 billion parameters.`,
          },
        },
        { kind: "formula", name: "sinkhorn", expert: true },
        {
          kind: "question",
          question: {
            id: "b",
            kind: "band",
            text: {
              simple:
                "The same sixty layers, with tables made by Sinkhorn from numbers that have moved as far. By how much do they multiply such a signal now?",
              expert: "Largest |row sum| of 60 Sinkhorn matrices in a row?",
            },
            ask: { quantity: "gain", kind: "manifold" },
            bands: [
              { label: "by 1, or next to it", below: 1.01 },
              { label: "by up to 10", below: 10 },
              { label: "by more than 10", below: Number.POSITIVE_INFINITY },
            ],
            unit: "times",
            why: {
              simple: "By 1. However the numbers move, each new stream is an average of the old ones.",
              expert: "Row sums are exact, since the rows are normalised last, and products keep them.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "c",
            kind: "choice",
            text: {
              simple:
                "Each table has had twenty rounds of Sinkhorn. In the product of all sixty, which sums are further from 1?",
              expert: "Which sums of the composite are further from 1, after 20 iterations per layer?",
            },
            options: [
              { label: "the rows'", ask: { quantity: "rows" } },
              { label: "the columns'", ask: { quantity: "columns" } },
            ],
            wins: "largest",
            unit: "away from 1 at most",
            why: {
              simple:
                "The columns': the rows had the last word. Rows are what comes forward, columns what goes back. So it is the gradient that is not kept exactly.",
              expert:
                "All of the truncation error is in the column sums, that is in the backward gain. A forward gain alone does not show it; watch the logarithm of the column sums.",
            },
          },
        },
        {
          kind: "correction",
          said: "Free mixing explodes, so that training with it fails.",
          text: {
            simple:
              "Its gain can grow to thousands. But a large gain is no failure: networks with it have been trained to the end, and did better than residual ones.",
            expert:
              "With a gain of about 3,000 the authors of mHC report their HC model as better than the residual baseline, and than mHC on one of eight tasks; an independent run with clipped gradients is said to have met a gain above 10,000 and no crash. Look at losses besides gains.",
          },
        },
        {
          kind: "correction",
          said: "mHC keeps signal and gradient exactly.",
          after: "c",
          text: {
            simple:
              "A signal that is alike in all streams, yes. A gradient that is alike in all streams comes back as well as the number of rounds allows.",
            expert:
              "Exactly in the row sums; in the column sums up to what 20 iterations leave. And averaging over many layers makes the streams alike, which no sum shows.",
          },
        },
      ],
    },
    {
      title: "Without mixing, and over depth",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `One can also keep several streams and not mix them at all (*identity* HC): then nothing multiplies. Or drop the sum:
              with *attention over depth* each layer looks at what all layers before it returned, and chooses by itself how
              much of each it reads. The weights of its choice sum to 1.`,
            expert: `Identity HC sets Hʳᵉˢ = I and keeps read and write. Attention residuals (Kimi team 2026) replace the sum by a
              softmax over depth, with normalised keys and one learned query per layer. Queries of zero average uniformly, which,
              before a branch that normalises its input, is the pre-norm residual network up to epsilon.`,
          },
        },
        { kind: "formula", name: "attention", expert: true },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "band",
            text: {
              simple:
                "Before training: the gradient at the first layer with hyper-connections, compared with that in a residual network?",
              expert:
                "At initialisation: gradient at layer 1 over that at layer 60 with HC, divided by the same of the pre-norm residual network?",
            },
            ask: { quantity: "kept", connection: "hyper", over: "residual" },
            bands: [
              { label: "smaller", below: 0.99 },
              { label: "the same", below: 1.01 },
              { label: "larger", below: Number.POSITIVE_INFINITY },
            ],
            unit: "times the residual network's",
            why: {
              simple:
                "The same: all of these begin as the residual network, and become something else by training. What they do better or worse shows later.",
              expert:
                "HC starts as the pre-norm network exactly, up to the factor n of its sum. Gradients at initialisation do not tell them apart; composite gains during training do.",
            },
          },
        },
      ],
      drawing: {
        kind: "depth",
        title: "Gradient by layer",
        shows: "gradient",
        controls: ["connections", "norm", "preActivation", "init"],
        caption: {
          simple:
            "Before training. HC's line is parallel to that of the residual network: it adds up its four streams at the end, which makes the whole line four times as high. Attention over depth averages, which makes its line lower. Look at the factor per layer, below.",
          expert:
            "By what each branch returns, at initialisation. HC's sum multiplies all of it by n, attention's average divides. Attention over depth reads from 8 blocks.",
        },
      },
    },
  ],
  sources: ["hyper", "manifold", "attention"],
};
