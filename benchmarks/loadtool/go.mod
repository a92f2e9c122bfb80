module spanbill/loadtool

go 1.22
