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
- Seconds are of one thread, beside other work on the second core: look at the load. The limit is
  of the clock. The paper's seconds are of 64 cores and a GPU.
"""

SHORT = """
## MNIST in short

Means over the networks, of the runs that left a model.
"""

FOUND = """
## What came of it

Figures in this section are of 50 balls, unless it says otherwise.

- **In the regions** `advrepair` proves all it is given, in every cell, in two seconds at most, and
  loses no accuracy. On MNIST `constant-bias` and [`cap`](caps.md) do the same, so these tables do
  not show that patches learn anything. On ACAS Xu `constant-bias` changes 1.7 % of the decisions
  in the box, and ours none; caps take no property files.
- **On ACAS Xu** all but TRADES and caps, which take no such task, repair the counterexamples on
  all ten networks. An attack finds others after REASSURE on each, after CARE on N2,2. The core
  proves the property of the networks of APRNN and ART on ten, of CARE on seven. What differs is how
  many decisions change around the box: ours none, ART 6.3, APRNN 7.0, PRDNN 8.3, CARE 12.6 %. For
  a patch that is easy there: [acasxu.md](acasxu.md) says why.
- **On other inputs training is better than ours, by far.** With `advrepair` unseen inputs stand
  as they do without a repair, and what was proved of them before at radius 0.05 (4, 4 and 37 %)
  is lost, since patches may be on anywhere. With ART 60, 81 and 90 % stand there, 30, 44 and 78 %
  proved, for 0.1 to 0.7 points. On the CNN TRADES reaches 89 %, 83 % proved, in 11 s.
- **ART is the only other method with proved balls**, but for TRADES on the CNN (64 % at 0.05, 8 %
  at 0.1) and one of CARE's: 94 to 100 % of them at 0.05, 96 to 100 % at 0.1, for 1.0 to 2.2
  points. At 0.3 it fails: 8, 8 and 0 % of them, for 10.9 to 24.0 points.
- **Points are points.** APRNN and PRDNN repair every counterexample, for 0.5 points at most, and
  hardly a ball stands (DSR at most 12 %). REASSURE loses nothing and repairs little else: DSR is
  at most 8 %. On the CNN a region takes it one to thirty seconds, and from 0.1 on the time is up
  before all are solved.
- **What agrees with the paper**: our own rows but for DGSR; the RSR of 100 % and the small DSR of
  the linear programs; ART on ACAS Xu (FDD 6.3 % here, 5.8 % there); TRADES on the CNN, roughly.
- **PRDNN and APRNN lose far less here**: 0.5 points at most, up to 77.0 there; on ACAS Xu the FDD
  of PRDNN is 8.3 %, 89.0 % there. The choice of the layer is a small part of it: on held-out inputs
  the layers are within 0.15 points of each other at 0.05 and 0.1 and within 2.6 at 0.3; with 200
  balls within 0.4, 1.4 and 9.3. Our change is proved to be within 5 % of the least; the released
  code counts the change of the outputs too, and its solver is an interior point without
  crossover. Which of these matters was not tried.
- **CARE repairs more here**: 42 to 86 % against 18 % at most. Why was not tried.
- **REASSURE's DGSR** is 0 in every row of the paper that can be read, also where its DD is 0 and
  others that hardly change the network have 70 % (CNN, 0.05). Here unseen inputs stand as in the
  network alone.
- **TRADES is better there on fnn_big** at 0.05: RSR 98 % to 84 %, DSR 82 % to 22 %. Ours is not
  tuned.
- **With 200 balls** the order is the same. `advrepair` proves all of them on the three networks at
  the three radii, in 1.5 s at most. More balls teach the others more: of unseen inputs ART makes 79
  to 89 % stand at 0.05, 60 to 86 % proved, and TRADES on the CNN 94 %, 88 % proved, with all 200
  balls. At 0.1 ART proves 96.5, 96.5 and 87.5 % of the balls for about 2 points, but wants all of
  its time. APRNN, whose solver failed there on fnn_small, repairs all 200, for 1.6 points at most;
  its largest layers do not end within their share of the time, or have no solution (the
  convolution).
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

- `trades` and `cap` on ACAS Xu: they take balls around labelled inputs. APRNN and TRADES are not in
  the paper's table 2. The networks of it that were run are its first ten.
- The paper's CIFAR-10 (table 4), by other methods than ours: for ours see
  [large-networks.md](large-networks.md).
- Other numbers of balls than 50 and 200.
- More than one seed. TRADES changes by tens of points with the seed where few inputs are
  repaired.
- Other options than the defaults, and more time: most of all ART on the CNN and REASSURE would
  use it.
"""
