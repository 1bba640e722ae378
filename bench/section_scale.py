NAME = "scale"
