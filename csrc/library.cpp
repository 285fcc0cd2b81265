// The schemas of all operators of fcos_fast: the table of contents of csrc.
//
// math/<op>.h documents what an operator computes, for which shapes and dtypes. Gradients, fake kernels and argument
// checks are registered from Python (fcos_fast/ops).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fcos_fast, m) {
  // math/focal_loss.h
  m.def(
      "sigmoid_focal_loss(Tensor inputs, Tensor targets, Tensor? weight, float alpha, float gamma) -> Tensor");
  m.def(
      "sigmoid_focal_loss_sum(Tensor inputs, Tensor targets, Tensor? weight, float alpha, float gamma, bool with_grad) -> "
      "(Tensor sum, Tensor grad)");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, Tensor? weight, float alpha, float gamma) -> Tensor");
  m.def(
      "sigmoid_focal_loss_star(Tensor inputs, Tensor targets, Tensor? weight, float gamma, float beta) -> Tensor");
  m.def(
      "sigmoid_focal_loss_star_sum(Tensor inputs, Tensor targets, Tensor? weight, float gamma, float beta, bool with_grad) -> "
      "(Tensor sum, Tensor grad)");
  m.def(
      "sigmoid_focal_loss_star_backward(Tensor grad, Tensor inputs, Tensor targets, Tensor? weight, float gamma, float beta) -> Tensor");

  // math/assign_targets.h
  m.def(
      "assign_targets(Tensor boxes, Tensor labels, Tensor starts, int[] sizes, float[] geometry, "
      "str range_test, str sampling, str tie_break, float radius) -> "
      "(Tensor labels, Tensor matched, Tensor ltrb, Tensor centerness, Tensor totals)");

  // math/match_anchors.h
  m.def(
      "match_anchors(Tensor anchors, Tensor boxes, Tensor labels, Tensor starts, float high_threshold, "
      "float low_threshold, str low_quality, float min_pos_iou) -> (Tensor labels, Tensor matched, Tensor num_positive)");

  // math/centerness.h
  m.def("centerness(Tensor ltrb) -> Tensor");
  m.def("centerness_backward(Tensor grad, Tensor ltrb) -> Tensor");

  // math/box_loss.h
  m.def("box_loss(Tensor pred, Tensor target, str kind, bool ltrb, float smooth, float eps) -> Tensor");
  m.def("box_loss_sum(Tensor pred, Tensor target, str kind, bool ltrb, float smooth, float eps) -> Tensor");
  m.def(
      "box_loss_backward(Tensor grad, Tensor pred, Tensor target, str kind, bool ltrb, float smooth, float eps) -> Tensor");

  // math/detection_loss.h
  m.def(
      "detection_loss(Tensor[] cls_logits, Tensor[] box_regression, Tensor[] centerness, Tensor labels, Tensor ltrb, "
      "Tensor quality, Tensor totals, Tensor? normalizers, float[] units, float alpha, float gamma, str box_kind, "
      "float smooth, float eps, bool weighted, bool iou_quality, bool with_grad) -> "
      "(Tensor losses, Tensor[] cls_grads, Tensor[] box_grads, Tensor[] centerness_grads)");
  m.def(
      "detection_loss_backward(Tensor upstream, Tensor[] cls_logits, Tensor[] box_regression, Tensor[] centerness, "
      "Tensor labels, Tensor ltrb, Tensor quality, Tensor totals, Tensor? normalizers, float[] units, float alpha, "
      "float gamma, str box_kind, float smooth, float eps, bool weighted, bool iou_quality) -> "
      "(Tensor[] cls_grads, Tensor[] box_grads, Tensor[] centerness_grads)");
  m.def(
      "detection_loss_rescale_(Tensor(a!)[] cls_grads, Tensor(b!)[] box_grads, Tensor(c!)[] centerness_grads, "
      "Tensor upstream) -> ()");

  // math/group_norm_relu.h
  m.def(
      "group_norm_relu(Tensor x, Tensor? weight, Tensor? bias, int num_groups, float eps) -> "
      "(Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_relu_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias) -> "
      "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

  // math/winograd.h; only on the CPU
  m.def("winograd_input(Tensor x, int begin, Tensor(a!) squares) -> ()");
  m.def("winograd_gradient(Tensor grad, int begin, Tensor(a!) squares) -> ()");
  m.def("winograd_output(Tensor squares, Tensor? bias, int begin, Tensor(a!) out) -> ()");

  // math/nms.h
  m.def("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor");
  m.def(
      "nms_padded(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold, int max_detections) -> "
      "(Tensor indices, Tensor counts)");

  // math/postprocess.h
  m.def(
      "postprocess(Tensor[] cls_logits, Tensor[] box_regression, Tensor[] centerness, Tensor sizes, float[] geometry, "
      "str score, float score_threshold, bool threshold_on_score, bool multi_label, int topk, bool topk_per_level, "
      "bool topk_by_classification, float iou_threshold, bool class_agnostic, int max_detections, "
      "bool inclusive_boxes, bool clip_before_nms, bool drop_empty) -> "
      "(Tensor boxes, Tensor scores, Tensor labels, Tensor counts)");
}
