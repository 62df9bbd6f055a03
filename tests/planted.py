"""One-line bugs for the energy, the relaxation and the rules, each with the fast test that is to find it."""

from typing import NamedTuple


class Bug(NamedTuple):
    """A slip in one line.

    Attributes:
        file: Where, below ``timm_ebl``.
        before: The line as it is, without its indentation; no other line of the file is the same.
        after: The line with the bug.
        test: The test that fails with it, below ``tests``.
    """

    file: str
    before: str
    after: str
    test: str


BUGS = {
    "norms of layers are added": Bug(
        "energy/functional.py",
        "return torch.stack(norms).norm(dim=0)",
        "return torch.stack(norms).sum(dim=0)",
        "test_tolerance.py::test_the_residual_is_the_relative_size_of_the_last_update",
    ),
    "the input's gradient lacks the weights": Bug(
        "energy/gradient.py",
        "part = _of_copies(operator, copies).feedback(uppers[upper], route)",
        "part = _of_copies(operator, copies).feedback(layers[upper], route)",
        "test_energy.py::test_a_contrast_and_its_gradient_are_those_of_autograd_at_the_states",
    ),
    "the input's gradient is that of its last edge": Bug(
        "energy/gradient.py",
        "input_gradient = part if input_gradient is None else input_gradient.add_(part)",
        "input_gradient = part",
        "test_graph.py::test_the_contrast_has_the_gradient_of_the_energies",
    ),
    "a layer that a hidden one drives too counts as lowest": Bug(
        "energy/graph.py",
        "return frozenset(k for k, edges in enumerate(self.incoming) if all(self.edges[i].lower is None for i in "
        "edges))",
        "return frozenset(k for k, edges in enumerate(self.incoming) if any(self.edges[i].lower is None for i in "
        "edges))",
        "test_graph.py::test_a_response_leaves_out_at_first_the_layers_that_the_input_alone_drives",
    ),
    "a damped nudge steps from the drive": Bug(
        "energy/perturbation.py",
        "return drive - self.beta * (present - self.target)",
        "return drive - self.beta * (drive - self.target)",
        "test_rules.py::test_every_rules_update_is_the_slow_references[c-ep-the paper's]",
    ),
    "a nudge costs twice what it should": Bug(
        "energy/perturbation.py",
        "return (self.beta * (state[-1] - self.target) ** 2).sum(1) / 2",
        "return (self.beta * (state[-1] - self.target) ** 2).sum(1)",
        "test_theorems.py::test_the_bounds_of_theorem_2_hold_for_each_sample[0]",
    ),
    "feedbacks are not added": Bug(
        "relaxation/phase.py",
        "field = feedback if field is None else field.add_(feedback)",
        "field = feedback",
        "test_graph.py::test_energy_and_field_are_those_of_the_edges",
    ),
    "a drive stays when the layer below it changes": Bug(
        "relaxation/phase.py",
        "self._drives[edge] = Drive(None, outdated.route)",
        "self._drives[edge] = outdated",
        "test_minimize.py::test_images_that_no_pooling_divides_are_relaxed_as_by_the_reference",
    ),
    "the output layer is over-relaxed": Bug(
        "relaxation/phase.py",
        "if layer != self.last:",
        "if layer <= self.last:",
        "test_minimize.py::test_every_sweep_ends_where_the_references_does[free-1.4-backward]",
    ),
    "a potential is over-relaxed twice": Bug(
        "relaxation/phase.py",
        "potential, earlier = _towards(value, clipped, 1 - 1 / omega), self._potentials[layer]",
        "potential, earlier = _towards(value, clipped, 1 - omega), self._potentials[layer]",
        "test_response.py::test_every_sweep_ends_where_the_references_does[nudged-1.0-forward]",
    ),
    "frozen samples take the new potential": Bug(
        "relaxation/phase.py",
        "potential = torch.where(_each(frozen, potential), earlier, potential)",
        "potential = torch.where(_each(frozen, potential), potential, earlier)",
        "test_response.py::test_samples_that_were_done_early_respond_as_the_others",
    ),
    "the answer is the output layer as it was left": Bug(
        "relaxation/phase.py",
        "output = self.perturbation.output(self.drive_into(self.last), state[-1]).clone()",
        "output = state[-1].clone()",
        "test_relaxation.py::test_the_answer_is_the_same_by_every_way_of_asking",
    ),
    "a clamped output starts at zero": Bug(
        "relaxation/phase.py",
        "zero[-1] = perturbation.start(zero[-1])",
        "zero[-1] = zero[-1].clone()",
        "test_minimize.py::test_every_sweep_ends_where_the_references_does[clamped-1.4-forward]",
    ),
    "the residual is relative to the state before": Bug(
        "relaxation/descent.py",
        "return torch.where(change > 0, change / norm(after), change)",
        "return torch.where(change > 0, change / norm(before), change)",
        "test_tolerance.py::test_the_residual_is_the_relative_size_of_the_last_update",
    ),
    "a sample that fell back over-relaxes again": Bug(
        "relaxation/descent.py",
        "self.slow = self.slow | (self.residual > self.first)",
        "self.slow = self.residual > self.first",
        "test_tolerance.py::test_a_growing_residual_takes_the_over_relaxation_back_in_its_sample_alone",
    ),
    "a copy ends as soon as the other one does": Bug(
        "relaxation/descent.py",
        "self.done = self.done | near.all(0).repeat(self.phase.copies)",
        "self.done = self.done | near.any(0).repeat(self.phase.copies)",
        "test_tolerance.py::test_a_sample_goes_on_until_both_of_its_copies_are_done",
    ),
    "the mean of two responses moves a sweep too late": Bug(
        "relaxation/response.py",
        "self._moves_mean = self.copies == 2 and sweep % SWEEPS_BETWEEN_MEANS == 0",
        "self._moves_mean = self.copies == 2 and (sweep - 1) % SWEEPS_BETWEEN_MEANS == 0",
        "test_response.py::test_every_sweep_ends_where_the_references_does[nudged-1.4-backward]",
    ),
    "a response starts from the clipped state": Bug(
        "relaxation/response.py",
        "centre = wide(self.cache.potentials[layer])",
        "centre = wide(self.free.state[layer][: self.samples])",
        "test_response.py::test_every_sweep_ends_where_the_references_does[clamped-1.4-forward]",
    ),
    "an order knows chains alone": Bug(
        "relaxation/order.py",
        "taken = {colours[other] for other in near if other < layer}",
        "taken = {colours[other] for other in near if other == layer - 1}",
        "test_hopfield_resnet.py::test_three_colours_are_found",
    ),
    "updates are traced back in the wrong order": Bug(
        "relaxation/order.py",
        "for group in reversed(groups):",
        "for group in groups:",
        "test_order.py::test_an_answer_is_the_relaxations",
    ),
    "a change in place is not seen": Bug(
        "relaxation/record.py",
        "return len(first) == len(second) and all(a is b and m == n for (a, m), (b, n) in zip(first, second, "
        "strict=True))",
        "return len(first) == len(second) and all(a is b for (a, _), (b, _) in zip(first, second, strict=True))",
        "test_energy.py::test_a_contrast_of_states_of_other_parameters_is_refused",
    ),
    "two copies of a changed input keep what was known": Bug(
        "relaxation/record.py",
        "fits = cache is not None and stamp([self.input])[0][1] == cache.made_of[0][1]  # not changed in place",
        "fits = cache is not None and stamp([self.input])[0][0] is cache.made_of[0][0]",
        "test_relaxation.py::test_copies_of_an_input_that_was_changed_in_place_know_nothing_of_it",
    ),
    "two copies of a changed state keep what was known": Bug(
        "relaxation/record.py",
        "if fits := fits and all(r._cache.versions == versions_of(r.state) for r in (self, other)):",
        "if fits:",
        "test_relaxation.py::test_a_state_changed_in_place_is_not_taken_for_the_one_that_was_found",
    ),
    "what was pruned again is not noticed": Bug(
        "relaxation/record.py",
        'yield from (mask for name, mask in interaction.named_buffers() if name.endswith("_mask"))',
        "pass",
        "test_torch_module.py::test_a_network_that_is_pruned_again_takes_nothing_from_before",
    ),
    "the routes of two copies are exchanged": Bug(
        "relaxation/record.py",
        "drives = tuple(Drive(None, a if a is b else torch.cat([a, b])) for a, b in routes)",
        "drives = tuple(Drive(None, a if a is b else torch.cat([b, a])) for a, b in routes)",
        "test_rules.py::test_every_rules_update_is_the_slow_references[p-ep-no companion]",
    ),
    "going on starts with the first over-relaxation again": Bug(
        "relaxation/minimizer.py",
        "omega = tuple(self.omega_of(self.sweeps + sweep) for sweep in range(1, sweeps + 1))",
        "omega = tuple(self.omega_of(sweep) for sweep in range(1, sweeps + 1))",
        "test_minimize.py::test_a_minimiser_that_goes_further_ends_where_one_of_all_the_sweeps_does",
    ),
    "over-relaxations are off by one": Bug(
        "relaxation/minimizer.py",
        "return self._omegas[min(sweep, len(self._omegas)) - 1]",
        "return self._omegas[min(sweep, len(self._omegas) - 1)]",
        "test_minimize.py::test_every_sweep_ends_where_the_references_does[free-omega2-asynchronous]",
    ),
    "Equation 6 lacks a factor 2": Bug(
        "rules/contrastive.py",
        "weights = weights / ((signs if self.draws else second - first) * self.beta)",
        "weights = weights / self.beta",
        "test_theorems.py::test_theorem_3_centred_propagation_descends_the_cost_up_to_beta_squared",
    ),
    "Equation 7 is that of its end alone": Bug(
        "rules/contrastive.py",
        "return Clamped((1 - beta) * output + beta * target)  # Equation 7, and Equation 2 where beta is 1",
        "return Clamped(output + beta * target)",
        "test_rules.py::test_every_rules_update_is_the_slow_references[c-cpl-held, settled]",
    ),
    "Equation 5 has the wrong sign": Bug(
        "rules/contrastive.py",
        "pair = Relaxation.pair(pair, rest) if first else Relaxation.pair(rest, pair)",
        "pair = Relaxation.pair(rest, pair) if first else Relaxation.pair(pair, rest)",
        "test_theorems.py::test_theorem_2_one_sided_propagation_descends_a_bound_of_the_cost[n-ep--1]",
    ),
    "a companion has to be asked for": Bug(
        "rules/contrastive.py",
        "return self.companion is not False and not self.linear_response and 0 in self.nudging.value",
        "return bool(self.companion) and not self.linear_response and 0 in self.nudging.value",
        "test_rules.py::test_a_companion_is_there_by_default_where_routes_are_followed",
    ),
    "the free state settles beside a companion": Bug(
        "rules/contrastive.py",
        "return not self.accompanies if self.settle is None else self.settle",
        "return True if self.settle is None else self.settle",
        "test_rules.py::test_a_companion_is_there_by_default_where_routes_are_followed",
    ),
    "a rule settles by the model's minimiser": Bug(
        "rules/contrastive.py",
        "return model.settle(free, self.free)",
        "return model.settle(free)",
        "test_rules.py::test_every_rules_update_is_the_slow_references[c-ep-held, settled]",
    ),
    "the state that goes on is the first of two": Bug(
        "rules/contrastive.py",
        "return RuleOutput(loss, free.output, free, tuple(layer[-len(target) :] for layer in pair.state))",
        "return RuleOutput(loss, free.output, free, tuple(layer[: len(target)] for layer in pair.state))",
        "test_rules.py::test_every_rules_update_is_the_slow_references[n-cpl-held as it is]",
    ),
    "the pulled back gradient lacks the forces' norm": Bug(
        "rules/contrastive.py",
        "return rule.contrast(model, free, perturb, norm)[0]",
        "return rule.contrast(model, free, perturb, torch.ones_like(norm))[0]",
        "test_backward.py::test_one_sided_equilibrium_propagation_of_a_loss_leaves_the_free_state_as_it_is",
    ),
    "the forces are not a mean over the batch": Bug(
        "rules/backprop.py",
        "forces = [None] * (len(free.state) - 1) + [self.cost.gradient(free.state[-1], target) / len(target)]",
        "forces = [None] * (len(free.state) - 1) + [self.cost.gradient(free.state[-1], target)]",
        "test_rules.py::test_recurrent_backpropagations_update_is_the_references",
    ),
    "there is one adjoint step too many": Bug(
        "rules/backprop.py",
        'for _ in range(_steps("adjoint", adjoint) - 1):',
        'for _ in range(_steps("adjoint", adjoint)):',
        "test_rules.py::test_recurrent_backpropagation_in_a_few_steps_is_backpropagation_through_as_many_sweeps[1]",
    ),
    "a gradient of two parameters is scaled twice": Bug(
        "rules/autograd.py",
        "return tuple(next(found) * scale if need else None for need in needed)  # two leaves may share a gradient",
        "return tuple(next(found).mul_(scale) if need else None for need in needed)",
        "test_torch_module.py::test_the_gradient_goes_on_to_whatever_makes_the_weights[loss-a sum]",
    ),
    "a layer used twice has one gradient": Bug(
        "rules/autograd.py",
        "forces[index] = wide if forces[index] is None else forces[index] + wide",
        "forces[index] = wide",
        "test_backward.py::test_a_layer_used_twice_has_the_sum_of_its_gradients",
    ),
}
