return time('')
