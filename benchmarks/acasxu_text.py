"""What the page on ACAS Xu says in words."""

TITLE = """
# ACAS Xu

This page is written by `python -m benchmarks.acasxu`, from cells it has computed; do not edit it.
"""

READING = """
## What is asked, and what an answer is worth

An ACAS Xu network advises an aircraft: of its five outputs it decides for the **smallest**.
Property 2 says that on one box output 0 is not the **largest**. Where the network breaks a
property, it is repaired; where it is proved without a repair, or nothing is found and nothing is
proved, it is left alone.

- **Keeping decisions is easy here.** The property is about the largest output, decisions are about
  the smallest. Raising an output that is never the smallest makes the property hold and changes no
  decision. That is what the repair does, with a constant. It mends the property to the letter. Who
  reads more from the outputs than the smallest of them, such as their ranking, must look at the
  columns under "where the patch is on".
- **RSR, RGR and FDD follow from the proof.** If the property is certified on its whole box, every
  counterexample in it is right afterwards, whichever were sampled. If patches are on in the box
  alone, no input outside it changes. The repair sees none of these samples.
- **FDD** is the share of decisions that changed. (The paper *defines* the share that did not, and
  *prints* the share that did.) Its inputs are drawn outside the box, where each of its sides is
  three times as long; the box is not the domain of the network.
- **fidelity** is the share of decisions unchanged inside the box, of those that were right; beside
  it, that of the trivial repair, a constant that is chosen without a look at decisions.
- **touched** is the volume where the patch is on, in per cent of the box. **decisions kept** and
  **ranking kept** are shares of 5,000 random inputs *there* that were right before: that decide as
  before, and that rank all five outputs as before. **intrusion** is the mean of max|P| over the
  mean of max|N| there: 100 % is a patch as large as what the network says.
- **repair, s** is cutting, search for counterexamples, bounds, patches and proof, inside the
  process. **process, s** is the whole command, with imports and evaluation, and **CPU, s** its
  processor time. **checker** is the independent checker of the certificate, a process of its own:
  INCOMPLETE means that its bounds do not reach the margin that is claimed, which neither refutes
  the certificate nor confirms it.
"""

TABLE_2 = """
## Property 2 on N2,1 to N5,9: the paper's Table 2

The paper's table has 35 of these 36 networks. What follows are means: ours of the networks that
were repaired, the others as the paper prints them, of 35. Its machine is another, so that times are
no race.
"""

NOT_REPAIRED = """
The paper repairs N3,3 with 500 counterexamples and measures 5,000 more. We find none there, and
tools of VNN-COMP 2021 answer that the property holds, as they do for N4,2, which the paper leaves
out. So there is nothing to repair, and a row for it would be made up.
"""

PRINTED = """
### What the paper prints, network by network

RSR / RGR / FDD in per cent / seconds.
"""

PAIRS = """
## All pairs of VNN-COMP 2021

Every network with every property that the competition asked of it. *Violated* and *holds* are what
tools of the competition answered; no two of the seven that are counted disagree. **unknown**: no
counterexample and no proof within the budget of pieces; the network is left alone and nothing is
claimed.
"""

REFINERS = """
## Refiners

Property 2 with the same budget of pieces, and another rule for where to cut. `none` cuts nothing:
the patch is on in the whole box. **largest** is the largest number that it adds to an output.
**open** is the volume on which the network alone is not proved.
"""

PLOT = """
## How much is proved before any patch

![Share of the box that the network proves alone, by pieces]({})

The first third of the pieces goes to the largest that are open, and the proved volume grows. The
rest goes to those that would need the largest patch: that lowers the patch, and the volume hardly
grows.
"""

LIMITS = """
## What was not done

- The other methods were run on ten of the networks: [comparison.md](comparison.md). Their figures
  here are the paper's.
- One seed, one budget of pieces. More pieces leave less to patch and take longer.
- Counterexamples come from a search in the pieces that are not proved, not uniformly from all there
  are: RSR and RGR would be biased if they were not 100 % by proof.
- Times of a machine that may have had other work: the load at the start of each run is in the table
  at the top, in processes. `python -m benchmarks.acasxu --pairs --refiners --force` measures all
  again.
"""
