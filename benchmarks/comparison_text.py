"""What the page of the comparison says in words."""

TITLE = """
# The methods on our networks

This page is written by `python -m benchmarks.comparison`, from cells it has run; do not edit it.
"""

READING = """
## How to read it

- Figures are ours; in parentheses stands what the [paper](https://arxiv.org/abs/2404.01642v1)
  prints for the same cell and method in its tables 1, 2 and 3. Rates are per cent. What the columns
  mean is said in [compare.md](compare.md).
- The paper ran code that was there for each method, with settings of its own; ours are written
  anew from the papers ([advrepair-baselines](../plugins_contrib/advrepair-baselines/README.md)).
  Networks, counterexamples, attack and machine are others too. So a difference is not an error of
  either, unless a note says so.
- The paper *defines* DSR, DGSR and FDD as the opposite of what it *prints*. Here DSR and DGSR are
  shares of defence and FDD is loss, the paper's as printed.
- **scope** is what a method promises, **certified** is what the core has proved of its model; a
  dash is a model that the core cannot bound. The row `constant-bias` looks at no input: what it
  reaches too says nothing about a method.
- The paper measures DGSR on 10,000 test inputs and DSR on all balls, by AutoAttack cut to ten
  steps. Here it is descent on the first ones, as many as the table says. **Without a proof every
  DSR and DGSR is an upper bound.**
- Seconds are of one thread on a machine that had other work: look at the load. Where that was
  looked at, a method had two thirds of a core, and the limit is of the clock. The paper's seconds
  are of 64 cores and a GPU.
"""

SHORT = """
## MNIST in short

Means over the networks, of the runs that left a model.
"""

FOUND = """
## What came of it

Figures in this section are of 50 balls, unless it says otherwise.

- **In the regions** `advrepair` proves all it is given, in every cell, in a second on MNIST and
  two on ACAS Xu, and loses no accuracy. On MNIST `constant-bias` does the same, so these tables
  do not show that patches learn anything. On ACAS Xu it changes 1.7 % of the decisions in the
  box, and ours none.
- **On ACAS Xu** all but TRADES, which takes no such task, repair the counterexamples on all ten
  networks. An attack finds others after REASSURE on each, after CARE on N2,2. The core proves the
  property of the networks of APRNN and ART on ten, of CARE on seven. What differs is how many
  decisions change around the box: ours none, ART 6.2, APRNN 7.0, PRDNN 8.3, CARE 12.6 %. For a
  patch that is easy there: [acasxu.md](acasxu.md) says why.
- **On other inputs training is better than ours, by far.** With `advrepair` unseen inputs stand
  as they do without a repair, and what was proved of them before at radius 0.05 (4, 4 and 37 %)
  is lost, since patches may be on anywhere. With ART 60, 81 and 90 % stand there, 30, 43 and 79 %
  proved, for 0.3 to 0.7 points. On the CNN TRADES reaches 89 %, 83 % proved, in 16 s.
- **ART is the only other method with proved balls**, but for TRADES on the CNN (64 % at 0.05, 8 %
  at 0.1) and one of CARE's: 94 to 100 % of them at 0.05; at 0.1 96 and 98 % on the fully
  connected networks, for 1.7 and 2.0 points, and on the CNN 64 %, where the time was up after one
  epoch. At 0.3 it fails: 8, 6 and 0 % of them, for 8.7 to 22.8 points.
- **Points are points.** APRNN and PRDNN repair every counterexample, for 0.5 points at most, and
  hardly a ball stands (DSR at most 12 %). REASSURE loses nothing and repairs little else: DSR is
  at most 8 %. On the CNN it solved 12 of 50 regions at 0.1 and 3 at 0.3 before the time was up.
- **What agrees with the paper**: our own rows but for DGSR; the RSR of 100 % and the small DSR of
  the linear programs; ART on ACAS Xu (FDD 6.2 % here, 5.8 % there); TRADES on the CNN, roughly.
- **PRDNN and APRNN lose far less here**: 0.5 points at most, up to 77.0 there; on ACAS Xu the FDD
  of PRDNN is 8.3 %, 89.0 % there. That is not the choice of the layer: at 0.05 and 0.1 all layers
  are within 0.15 points of each other on held-out inputs, at 0.3 within 2.6. Our change is proved
  to be within 5 % of the least; the released code counts the change of the outputs too, and its
  solver is an interior point without crossover. Which of these matters was not tried.
- **CARE repairs more here**: 42 to 86 % against 18 % at most. Why was not tried.
- **REASSURE's DGSR** is 0 in every row of the paper that can be read, also where its DD is 0 and
  others that hardly change the network have 70 % (CNN, 0.05). Here unseen inputs stand as in the
  network alone.
- **TRADES is better there on fnn_big** at 0.05: RSR 98 % to 84 %, DSR 82 % to 22 %. Ours is not
  tuned.
- **With 200 balls** of 0.1, on the two networks that were run, the order is the same. `advrepair`
  proves all 400 in less than a second each time. ART proves 94 and 99 %, for 2.2 and 2.0 points
  in nearly two minutes, and of unseen inputs 26 and 33 %: more balls teach it more. APRNN, whose
  solver failed there on fnn_small, repairs all 200 for 0.1 points; on fnn_big the time was up in
  the first of its linear programs, and the other layers were not tried.
"""

CHOOSING = """
## When to choose another method than ours

- **`art`**, where an ordinary network is wanted, with no routing and no second channel, and
  training it is allowed: up to radius 0.1 it proves nearly all balls and helps inputs that were
  not repaired. It changes the network everywhere, needs minutes for convolutions, and fails at
  0.3. Boxes of few inputs it proves whole; decisions around them change (6 %).
- **`trades`**, where robustness in general is wanted and a loss of accuracy is allowed, above all
  with convolutions. It repairs no given input for sure, and at 0.1 half of them on the fully
  connected networks.
- **`aprnn`**, where an ordinary network of the same architecture is wanted and points are enough;
  on boxes of few inputs (`aprnn.region=boxes`) it holds on all of them, for decisions in and
  around the box that change.
- **`prdnn`**, where points are enough and nothing but one layer may change; what it makes is no
  ordinary network.
- **`reassure`**, where the linear region around a counterexample is meant, and nothing else: its
  FDD and DD are nil, and other counterexamples mostly stay wrong.
- **`care`**, where it must be small and fast and nothing need hold: it rescales a few neurons.
- **`advrepair`** repairs what is named, proves it, and leaves the rest alone. It helps no other
  input; for that see [generalisation.md](generalisation.md).
"""

LIMITS = """
## What was not run

- `trades` on ACAS Xu: it needs a label. APRNN and TRADES are not in the paper's table 2. The
  networks of it that were run are its first ten.
- Other numbers of balls than 50 and 200, and the paper's CIFAR-10 (table 4).
- More than one seed. TRADES changes by tens of points with the seed where few inputs are
  repaired.
- Other options than the defaults, and more time: most of all ART on the CNN and REASSURE would
  use it.
"""
