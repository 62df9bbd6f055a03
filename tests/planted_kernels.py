"""One-line bugs for the kernels and the models, as in `planted.py`."""

from planted import Bug

BUGS = {
    "a feedback by autograd is a total derivative": Bug(
        "kernels/operator.py",
        "at = at.clone() if differentiable and at.requires_grad else at.detach().clone().requires_grad_()",
        "at = at if differentiable and at.requires_grad else at.detach().clone().requires_grad_()",
        "test_operators.py::test_a_feedback_is_a_partial_derivative",
    ),
    "rows that no step reaches are lost": Bug(
        "kernels/convolution.py",
        "size, left_over = (down // stride[0] + 1, across // stride[1] + 1), [down % stride[0], across % stride[1]]",
        "size, left_over = (down // stride[0] + 1, across // stride[1] + 1), [0, 0]",
        "test_operators.py::test_the_operator_of_changes_is_its_twin[ConvInteraction, kernel 3, stride 2, pool 2]",
    ),
    "a change of state drives with the bias": Bug(
        "kernels/convolution.py",
        "found = wide(pooling.hold(self.engine.up(change, None), route))",
        "found = wide(pooling.hold(self.engine.up(change, self.offset), route))",
        "test_operators.py::test_the_operator_of_changes_is_its_twin[AveragePooled, kernel 3, stride 1, pool 2]",
    ),
    "half the product of differences is doubled": Bug(
        "kernels/convolution.py",
        "return total + self._weight_gradient(two - one, above - below, pooling, route) / 2, of_bias",
        "return total + self._weight_gradient(two - one, above - below, pooling, route), of_bias",
        "test_operators.py::test_the_operator_of_a_pair_is_its_twin[ConvInteraction, kernel 3, stride 1, pool 2-one "
        "route]",
    ),
    "a scale of float16 is forgotten": Bug(
        "kernels/convolution.py",
        "return gradient if a is None else gradient * (a * b)",
        "return gradient if a is None else gradient * a",
        "test_rounding.py::test_16_bits_keep_the_digits_of_a_difference",
    ),
    "two copies in bfloat16 choose two routes": Bug(
        "kernels/convolution.py",
        "if route is None and self.dtype in ROUGH:",
        "if route is None and self.dtype == torch.float16:",
        "test_rounding.py::test_two_copies_in_16_bits_choose_one_route",
    ),
    "a replay returns what the next one writes to": Bug(
        "kernels/recording.py",
        "return _copied(self.results)",
        "return self.results",
        "test_recording.py::test_what_a_replay_returned_is_not_touched_by_the_next",
    ),
    "a replay has the inputs of its recording": Bug(
        "kernels/recording.py",
        "place.copy_(x)",
        "pass",
        "test_recording.py::test_a_replayed_answer_is_the_answer_while_the_weights_change",
    ),
    "a recording reads where its parameters were": Bug(
        "kernels/recording.py",
        "key = what, autocast, places, tuple(map(_form, inputs))",
        "key = what, autocast, len(places), tuple(map(_form, inputs))",
        "test_recording.py::test_another_form_is_another_recording",
    ),
    "a weight is packed while code is compiled": Bug(
        "kernels/convolution.py",
        "and not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())",
        "and not (torch.is_grad_enabled() or torch.jit.is_tracing())",
        "test_rounding.py::test_weights_are_packed_without_autograd_alone",
    ),
    "sums of means are made in 16 bits": Bug(
        "kernels/pooling.py",
        "return F.avg_pool2d(wide(unpooled), self.window)",
        "return F.avg_pool2d(unpooled, self.window)",
        "test_rounding.py::test_means_along_a_route_are_summed_in_32_bits",
    ),
    "the public unpooling divides by a window's side": Bug(
        "kernels/native.py",
        "spread = (upper / window**2).repeat_interleave(window, 2).repeat_interleave(window, 3)",
        "spread = (upper / window).repeat_interleave(window, 2).repeat_interleave(window, 3)",
        "test_native.py::test_pooling_and_its_adjoints",
    ),
    "a matrix's gradient has its columns in another order": Bug(
        "kernels/dense.py",
        "of_weight = self._as_samples(self._product(upper.t(), _last(lower).flatten(1))).flatten(1)",
        "of_weight = self._product(upper.t(), _last(lower).flatten(1))",
        "test_operators.py::test_the_operator_of_single_states_is_its_twin[dense, of maps-no_grad]",
    ),
    "Winograd's transposed convolution is not turned": Bug(
        "kernels/winograd.py",
        "self.turned_input, self.turned_output = self.input.flip(1), self.output.flip(0)",
        "self.turned_input, self.turned_output = self.input, self.output",
        "test_winograd.py::test_in_64_bits_it_is_the_convolution",
    ),
    "Winograd's gradient is that of the last images": Bug(
        "kernels/winograd.py",
        "total.baddbmm_(terms.transpose(1, 2), _terms(below, self.input))",
        "total = torch.bmm(terms.transpose(1, 2), _terms(below, self.input))",
        "test_winograd.py::test_in_64_bits_it_is_the_convolution",
    ),
    "a packed transposed kernel is not turned": Bug(
        "kernels/packed.py",
        "turned = self.kernel.flatten(2).transpose(0, 1).contiguous().flip(2)  # fast only if flat",
        "turned = self.kernel.flatten(2).transpose(0, 1).contiguous()",
        "test_rounding.py::test_packed_weights_are_exact_to_roundings[ConvInteraction, kernel 3, stride 1, pool 2]",
    ),
    "an answer waits for the first edge to the output alone": Bug(
        "models/network.py",
        "into_output = [self.graph.edges[edge].lower for edge in self.graph.incoming[-1]]",
        "into_output = [self.graph.edges[edge].lower for edge in self.graph.incoming[-1][:1]]",
        "test_graph.py::test_an_answer_of_a_network_with_skips_is_the_relaxations",
    ),
    "a sweep has the first over-relaxation": Bug(
        "models/network.py",
        "phase.sweep(minimizer.groups(self.graph.neighbours), minimizer.omega_of(minimizer.sweeps))",
        "phase.sweep(minimizer.groups(self.graph.neighbours), minimizer.omega_of(1))",
        "test_minimize.py::test_a_sweep_has_the_over_relaxation_of_the_last_one",
    ),
    "a clamped output goes on from where it is": Bug(
        "models/layered.py",
        "state = (*layers[:-1], perturbation.start(layers[-1]))",
        "state = layers",
        "test_minimize.py::test_every_sweep_from_a_given_state_ends_where_the_references_does[clamped-1.4-forward]",
    ),
    "the energy forgets the held routes": Bug(
        "models/layered.py",
        "phase.hold([drive.route for drive in cache.drives])",
        "phase.hold([None for drive in cache.drives])",
        "test_energy.py::test_a_relaxation_with_held_routes_has_the_energy_of_those_routes",
    ),
    "strides round the size of an image down": Bug(
        "models/interactions.py",
        "sides = ((side - lost) // step + 1 for side, step in zip(lower[1:], self.stride, strict=True))",
        "sides = (side // step for side, step in zip(lower[1:], self.stride, strict=True))",
        "test_operators.py::test_the_drive_has_the_announced_shape[ConvInteraction, kernel 3, stride 2, pool 1]",
    ),
    "the fan-in is the number of channels": Bug(
        "models/interactions.py",
        "fan_in = self.weight[0].numel()",
        "fan_in = self.weight.shape[1]",
        "test_operators.py::test_initial_parameters_fill_their_intervals",
    ),
    "a pruned weight is not made anew": Bug(
        "models/interactions.py",
        "renew_weight(self)",
        "self.weight.requires_grad",
        "test_operators.py::test_of_pruned_weights_the_operator_has_what_pruning_leaves",
    ),
    "an error feeds back through units at rest": Bug(
        "models/predictive_response.py",
        "return error.masked_fill_(drive <= low if high == math.inf else (drive <= low) | (drive >= high), 0)",
        "return error",
        "test_predictive.py::test_a_nudged_phase_is_the_textbooks_modified_projected_gradient",
    ),
    "the projected gradient is the plain one": Bug(
        "models/predictive.py",
        "field = drive",
        "field = self.graph.layers[layer].clip(drive)",
        "test_predictive.py::test_a_nudged_phase_is_the_textbooks_modified_projected_gradient",
    ),
    "a layer below a moved one stays": Bug(
        "models/predictive.py",
        "if not (self._moved & {layer, *near[layer]} or self.perturbation.reaches(layer))",
        "if not (self._moved & {layer, layer - 1} or self.perturbation.reaches(layer))",
        "test_predictive.py::test_centred_propagation_is_backpropagation_up_to_beta_squared[False]",
    ),
    "states go up without what pulls them down": Bug(
        "models/predictive_response.py",
        "pulled = self._both(self.cache.potentials[layer], self._sum([*self._into(layer), self._pulls[layer]]))",
        "pulled = self._both(self.cache.potentials[layer], self._sum(self._into(layer)))",
        "test_predictive_response.py::test_a_round_is_that_of_the_textbooks_jacobians",
    ),
    "a response's record keeps the free drives": Bug(
        "models/predictive_response.py",
        "drive if change is None else Drive(self._both(drive.value, change), drive.route)",
        "drive",
        "test_predictive_response.py::test_its_rounds_end_where_the_asynchronous_sweeps_do[nudged-small_network]",
    ),
    "a cross-entropy's Newton step lacks its second part": Bug(
        "rules/cost.py",
        "return slope.norm(dim=1, keepdim=True), part + rank_one * p / diagonal",
        "return slope.norm(dim=1, keepdim=True), -part",
        "test_cost.py::test_a_nudged_output_is_the_minimum",
    ),
}
