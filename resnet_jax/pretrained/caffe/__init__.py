"""The authors' released nets, .caffemodel files, read without Caffe."""
