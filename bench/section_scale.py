NAME="scale"
