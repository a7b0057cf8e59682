"""From a driving video and a picture to the control material of the animation model: functions of arrays, without models or files."""
